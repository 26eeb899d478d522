"""The projector over a real database: rows equal the fold, whatever happens to the process."""

import asyncio
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from command_side.commands import CancelTask, CompleteTask, StartTask
from events.codec import EventMapper
from events.errors import CheckpointConflict, LogRewound
from events.migrate import migrate
from events.tracking import check_log
from projector.fold import Changes, FoldStopped
from projector.follower import Follower
from projector.generations import ensure_live
from projector.leadership import Leadership
from projector.rows import LOADED, NAMES, row_of
from projector.runner import STANDING_BY, Projector
from projector.verify import inspect
from projector.view import Move, TasksView
from taskledger.postgres import connect_sync
from tests.integration.projection import (
    append_raw,
    execute,
    following,
    many_histories,
    present,
    project,
    row,
    table,
)
from tests.support import Service, eventually, wait_until


async def test_rows_are_what_the_fold_of_the_log_gives(service: Service) -> None:
    ids = await many_histories(service)
    assert project(service.dsn) == await service.log.head()

    stored = {r["id"]: r for r in table(service.dsn)}
    assert stored.keys() == set(ids)
    for task_id in ids:
        state = await service.state(task_id)
        found = row_of([stored[task_id][name] for name in LOADED]).state
        assert found == replace(state, payload=None)
        assert orjson.loads(stored[task_id]["payload"]) == state.payload
    assert inspect(service.dsn).differences == []


async def test_counters_are_kept_with_the_rows(service: Service) -> None:
    await many_histories(service)
    project(service.dsn)
    rows = table(service.dsn)
    counted = {
        (r["tenant"], r["queue"], r["kind"], r["status"]): r["tasks"] for r in table(service.dsn, "counts")
    }
    assert counted == Counter((r["tenant"], r["queue"], r["kind"], r["status"]) for r in rows)
    assert sum(r["created"] for r in table(service.dsn, "activity")) == len(rows)
    assert [(q["queue"], q["paused"], q["reason"]) for q in table(service.dsn, "queues")] == [
        ("q1", True, "maintenance")
    ]


async def test_a_running_projector_follows_and_tells(service: Service) -> None:
    with following(service.dsn, poll_seconds=1.0) as projector:
        wait_until(lambda: projector.status().ready, "the projector is ready")
        async with await psycopg.AsyncConnection.connect(service.dsn, autocommit=True) as listener:
            await listener.execute("listen taskledger_read")
            task = await service.create()
            async for notification in listener.notifies(timeout=10, stop_after=1):
                assert int(notification.payload) == task.position
        assert row(service.dsn, task.id)["status"] == "queued"

        await service.execute(task.id, StartTask(holder="h", worker="w"))
        done = await service.execute(task.id, CompleteTask(1, {"sum": 3}))

        async def is_done() -> bool:
            return projector.status().checkpoint == done.position

        await eventually(is_done)
        assert row(service.dsn, task.id)["result"] == b'{"sum":3}'


async def test_eight_projectors_make_one_generation_and_fold_once(service: Service) -> None:
    await asyncio.gather(*(service.create() for _ in range(50)))
    stop = threading.Event()
    projectors = [Projector(service.dsn, poll_seconds=0.1) for _ in range(8)]
    threads = [threading.Thread(target=p.run, args=(stop,)) for p in projectors]
    try:
        for thread in threads:
            thread.start()
        wait_until(lambda: all(p.status().checkpoint == 50 for p in projectors), "all see 50")
        assert sum(p.status().waiting_for == STANDING_BY for p in projectors) == 7
        assert all(p.status().ready for p in projectors)
    finally:
        stop.set()
        for thread in threads:
            thread.join(15)
    assert len(present(service.dsn)) == 1
    assert [c["tasks"] for c in table(service.dsn, "counts")] == [50]


async def test_a_standby_takes_over_when_the_leader_loses_its_lock(service: Service) -> None:
    with following(service.dsn) as first:
        wait_until(lambda: first.status().ready, "a leader")
        with following(service.dsn) as second:
            wait_until(lambda: second.status().waiting_for == STANDING_BY, "a standby")
            killed = execute(
                service.dsn,
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                " and application_name like 'taskledger-projector%%'",
            )
            assert killed >= 2
            task = await service.create()

            async def both_see_it() -> bool:
                return first.status().checkpoint == second.status().checkpoint == task.position

            await eventually(both_see_it)
            wait_until(
                lambda: [first.status().waiting_for, second.status().waiting_for].count(None) == 1,
                "one leads",
            )
    assert inspect(service.dsn).differences == []


def _followers(connection: Connection[TupleRow]) -> tuple[Follower, Follower]:
    generation = ensure_live(connection)
    return (
        Follower(connection, EventMapper(), generation),
        Follower(connection, EventMapper(), generation),
    )


async def test_a_superseded_leader_changes_nothing(service: Service) -> None:
    await service.create()
    with connect_sync(service.dsn, name="test") as connection:
        leader, frozen = _followers(connection)
        assert leader.step()
        with pytest.raises(CheckpointConflict):
            frozen.step()
    assert [c["tasks"] for c in table(service.dsn, "counts")] == [1]


async def test_a_batch_that_dies_before_its_commit_is_folded_again_exactly(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash at the worst moment: all is written, nothing committed."""
    await many_histories(service, count=10)
    with connect_sync(service.dsn, name="test") as connection:
        follower, _ = _followers(connection)
        write = TasksView.write

        def write_and_die(
            view: TasksView, over: Connection[TupleRow], changes: Changes, move: Move | None = None
        ) -> None:
            with over.transaction():
                assert write(view, over, changes, move) is not None
                raise ConnectionResetError

        monkeypatch.setattr(TasksView, "write", write_and_die)
        with pytest.raises(ConnectionResetError):
            follower.step()
    monkeypatch.undo()
    assert table(service.dsn) == []
    assert present(service.dsn)[0].checkpoint == 0

    assert project(service.dsn) == await service.log.head()
    assert inspect(service.dsn).differences == []


async def test_batches_are_bounded_in_bytes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        await service.create(payload={"text": "x" * 1000})
    monkeypatch.setattr("projector.follower.BATCH_BYTES", 1500)
    with connect_sync(service.dsn, name="test") as connection:
        follower, _ = _followers(connection)
        steps: list[int] = []
        while follower.step():
            steps.append(follower.checkpoint)
    assert steps == [2, 4, 5]


@pytest.mark.parametrize(
    ("topic", "state"),
    [
        ("TaskEncrypted", b"{}"),
        ("TaskCompleted", b'{"event_uid":"u","attempt":1,"class_version":9}'),
        ("TaskCompleted", b'{"event_uid":"u","attempt":"x","unheard_of":1}'),
        ("TaskCompleted", b"not json"),
    ],
)
async def test_an_event_it_cannot_fold_stops_it_visibly_at_the_event_before(
    service: Service, topic: str, state: bytes
) -> None:
    task = await service.create()
    await append_raw(service, task.id, 2, topic, state)
    behind = await service.create()

    with following(service.dsn) as projector:
        wait_until(lambda: "position 2" in (projector.status().waiting_for or ""), "it says where")
        assert not projector.status().ready
        assert projector.status().checkpoint == 1
        assert [r["id"] for r in table(service.dsn)] == [task.id]
        assert projector.heartbeat.alive()

        execute(service.dsn, "delete from taskledger.task_events where notification_id = 2")
        wait_until(lambda: projector.status().ready, "it goes on once it can")
        wait_until(lambda: projector.status().checkpoint == behind.position, "to the head")


async def test_a_gap_in_a_history_stops_it_with_everything_before_stored(service: Service) -> None:
    task = await service.create()
    other = await service.create()
    await service.execute(task.id, StartTask(holder="h", worker="w"))
    await service.execute(task.id, CompleteTask(1, 1))
    execute(service.dsn, "delete from taskledger.task_events where originator_version = 2")
    with connect_sync(service.dsn, name="test") as connection:
        follower, _ = _followers(connection)
        assert follower.step()
        assert follower.checkpoint == other.position
        with pytest.raises(FoldStopped, match="position 4"):
            follower.step()


async def test_aggregates_it_does_not_know_are_passed_over(service: Service) -> None:
    await service.create()
    last = await append_raw(service, uuid4(), 1, "WebhookRegistered", b"{}")
    assert project(service.dsn) == last
    assert len(table(service.dsn)) == 1


async def test_what_clients_send_cannot_wedge_it(service: Service) -> None:
    payload: dict[str, Any] = {
        "nul": "\0",
        "deep": [[[[]]]],
        "big": 2**53,
        "text": "\U0001f600 ß",
        "float": 1e308,
    }
    task = await service.create(payload=payload, tags=('a"b', "c,d{}", "e\\f"))
    await service.execute(task.id, StartTask(holder="h\0", worker="w\0"))
    await service.execute(task.id, CancelTask(reason="nul \0"))
    await service.execute(task.id, CompleteTask(1, {"nul": "\0"}))
    project(service.dsn)

    found = row(service.dsn, task.id)
    assert orjson.loads(found["payload"]) == payload
    assert found["tags"] == ['a"b', "c,d{}", "e\\f"]
    assert orjson.loads(found["result"]) == {"nul": "\0"}
    assert inspect(service.dsn).differences == []


def test_it_waits_for_the_migration_and_says_so(empty_dsn: str) -> None:
    with following(empty_dsn) as projector:
        wait_until(lambda: "migrate" in (projector.status().waiting_for or ""), "it says what it needs")
        assert not projector.status().ready
        migrate(empty_dsn)
        wait_until(lambda: projector.status().ready, "it goes on")


def test_it_waits_for_a_database_that_is_not_there(tmp_path: object) -> None:
    with following(f"host={tmp_path} port=1 dbname=none user=none") as projector:
        wait_until(
            lambda: (projector.status().waiting_for or "").startswith("PostgreSQL: "),
            "it says what it needs",
        )
        assert "\n" not in (projector.status().waiting_for or "")


async def test_it_leaves_a_generation_of_another_release_alone(service: Service) -> None:
    project(service.dsn)
    execute(service.dsn, "update taskledger.projection_generations set schema_version = 'other'")
    await service.create()
    with following(service.dsn) as projector:
        wait_until(lambda: "rebuild" in (projector.status().waiting_for or ""), "it says what to do")
        assert not projector.status().ready
    assert table(service.dsn) == []


def test_a_silent_leader_is_replaced(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Leadership(dsn, name="frozen", idle_seconds=1) as frozen:
        assert frozen.leads(1)
        with Leadership(dsn, name="standby") as standby:
            assert not standby.leads(1)
            wait_until(lambda: standby.leads(1), "the lock is free")
        monkeypatch.setattr(frozen, "_pinged", 0.0)
        with pytest.raises(psycopg.OperationalError):
            frozen.ping()


async def test_times_keep_their_microseconds(service: Service) -> None:
    run_at = datetime(2035, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    task = await service.create(run_at=run_at)
    project(service.dsn)
    found = row(service.dsn, task.id)
    assert (found["run_at"], found["due_at"], found["status"]) == (run_at, run_at, "scheduled")
    assert found["created_at"] == task.created_at


async def test_the_tables_have_the_columns_that_the_rows_have(service: Service) -> None:
    await service.create()
    project(service.dsn)
    assert set(table(service.dsn)[0]) == set(NAMES)


async def test_a_checkpoint_that_the_release_before_moved_on_is_no_restored_log(service: Service) -> None:
    for _ in range(3):
        await service.create()
    project(service.dsn)
    late = await service.create()
    # It knows the position alone, and leaves what it does not know as it was.
    execute(service.dsn, "update taskledger.checkpoints set position = %s", late.position)
    with connect_sync(service.dsn, name="test") as connection:
        check_log(connection, present(service.dsn)[0].name)
        execute(service.dsn, "update taskledger.checkpoints set event_at = event_at - interval '1 us'")
        with pytest.raises(LogRewound, match="at position 3 is another event"):
            check_log(connection, present(service.dsn)[0].name)
