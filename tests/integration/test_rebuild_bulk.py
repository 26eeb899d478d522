"""Rebuild in several processes: the same rows, whatever lies in the log, and the same refusals."""

import asyncio
import io
import random
import subprocess
import sys
from itertools import pairwise
from uuid import UUID, uuid4

import pytest

from command_side.commands import CompleteTask, FailTask, RequeueTask, StartTask
from events.errors import CheckpointConflict
from events.ids import queue_id
from events.task_events import TaskError
from projector import plan
from projector.fold import FoldStopped
from projector.meter import Meter
from projector.park import park
from projector.parking import Parked
from projector.rebuild import rebuild
from projector.verify import inspect
from taskledger.postgres import connect_sync
from tests.integration.projection import (
    append_raw,
    execute,
    live_number,
    many_histories,
    present,
    project,
    table,
)
from tests.support import Service

TABLES = ("tasks", "counts", "activity", "queues")
BROKEN = b'{"from":"a later release"}'


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short log has many."""
    monkeypatch.setattr(plan, "RANGE_EVENTS", 20)


def rebuilt(service: Service, processes: int = 1) -> list[tuple[int, int]]:
    """The same tables as those that were followed. Returns the progress that was told."""
    project(service.dsn)
    before = {name: table(service.dsn, name) for name in TABLES}
    seen: list[tuple[int, int]] = []
    done = rebuild(service.dsn, processes=processes, progress=lambda at, of: seen.append((at, of)))
    assert done.differences == ()
    assert {name: table(service.dsn, name) for name in TABLES} == before
    return seen


async def unusual_streams(service: Service) -> None:
    """What is not plain: NUL, much data, states of other writers, aggregates of a later release."""
    nul = await service.create(tags=("a", "b"))
    await service.execute(nul.id, StartTask(holder="h\0", worker="w"))
    large = await service.create(payload={"text": "x" * 20_000})
    await service.execute(large.id, StartTask(holder="h", worker="w"))
    await service.execute(large.id, CompleteTask(1, {"text": "y" * 20_000}))
    lost = await service.create(max_attempts=1)
    await service.execute(lost.id, StartTask(holder="h", worker="w"))
    error = TaskError(type="E", message="m", traceback="t")
    await service.execute(lost.id, FailTask(attempt=1, cause="error", error=error))
    await service.execute(lost.id, RequeueTask())
    spelt = b'{ "event_uid": "u", "kind": "k", "payload": {"a": 1.0, "a": 1e2}, "timeout_seconds": 5 }'
    await append_raw(service, uuid4(), 1, "TaskCreated", spelt)
    await append_raw(service, uuid4(), 1, "Invoice", b"{}")
    await service.commands.set_paused("q0", paused=True, reason=None)
    await service.commands.set_paused("q0", paused=False, reason=None)


@pytest.mark.parametrize("processes", [1, 2])
async def test_ranges_give_the_tables_that_following_gives(service: Service, processes: int) -> None:
    await many_histories(service)
    await unusual_streams(service)
    seen = await asyncio.to_thread(rebuilt, service, processes)
    head = await service.log.head()
    assert len(seen) > 5
    assert seen[-1] == (head, head)
    assert inspect(service.dsn).differences == []


FORKING = """
import sys
from projector import filling, plan, rebuild
plan.RANGE_EVENTS = 20
assert filling._how() == "fork" or sys.platform != "linux"
assert rebuild.rebuild(sys.argv[1], processes=2).differences == ()
"""


async def test_a_process_without_threads_forks_and_gives_the_same(service: Service) -> None:
    await many_histories(service)
    project(service.dsn)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", FORKING, service.dsn],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert live_number(service.dsn) == 2
    assert inspect(service.dsn).differences == []


async def test_the_tables_of_a_rebuild_have_all_their_indexes(service: Service) -> None:
    await many_histories(service, count=10)
    rebuilt(service)

    def definitions(generation: int) -> set[str]:
        schema = f"taskledger_read_g{generation}"
        with connect_sync(service.dsn, name="test") as connection:
            found = connection.execute(
                "select indexdef from pg_indexes where schemaname = %s union all"
                " select conname || pg_get_constraintdef(c.oid) from pg_constraint c"
                " where connamespace = %s::regnamespace",
                (schema, schema),
            )
            return {str(row[0]).replace(schema, "") for row in found}

    assert definitions(1) == definitions(2)
    assert len(definitions(1)) > 10


async def test_a_parked_task_stands_still_in_a_rebuild_too(service: Service) -> None:
    await many_histories(service, count=10)
    head = project(service.dsn)
    tasks = [await service.create() for _ in range(2)]
    await append_raw(service, tasks[0].id, 2, "TaskStarted", BROKEN)
    await service.execute(tasks[1].id, StartTask(holder="h", worker="w"))
    with pytest.raises(FoldStopped):
        project(service.dsn)
    park(service.dsn, head + 3, reason="why", by="me")
    rebuilt(service)
    statuses = {row["id"]: row["status"] for row in table(service.dsn)}
    assert [statuses[task.id] for task in tasks] == ["queued", "running"]


async def test_the_first_of_several_events_that_cannot_be_folded_is_named(service: Service) -> None:
    ids = await many_histories(service)
    head = project(service.dsn)
    positions = sorted(random.Random(3).sample(range(5, head), 3))
    for position in positions:
        execute(
            service.dsn,
            "update taskledger.task_events set state = %s where notification_id = %s",
            BROKEN,
            position,
        )
    with pytest.raises(FoldStopped) as stopped:
        rebuild(service.dsn)
    assert stopped.value.position == positions[0]
    assert len(ids) > 0
    assert [(g.number, g.state) for g in present(service.dsn)] == [(1, "live")]


@pytest.mark.parametrize("processes", [1, 2])
async def test_an_event_that_no_column_can_hold_is_named(service: Service, processes: int) -> None:
    """Written behind the projector's back, which would have stopped there."""
    await many_histories(service, count=10)
    head = project(service.dsn)
    position = await _too_much(service)
    await service.create()
    execute(
        service.dsn,
        "update taskledger.checkpoints set position = %s where name like 'tasks/%%'",
        position + 1,
    )
    with pytest.raises(FoldStopped) as stopped:
        await asyncio.to_thread(rebuild, service.dsn, processes=processes)
    assert stopped.value.position == position
    assert position == head + 1
    assert [(g.number, g.state) for g in present(service.dsn)] == [(1, "live")]


async def _too_much(service: Service) -> int:
    state = b'{"event_uid":"u","kind":"k","payload":1,"max_attempts":9223372036854775808}'
    return await append_raw(service, uuid4(), 1, "TaskCreated", state)


def unequal(*_: object) -> bool:
    return False


async def test_an_event_parked_meanwhile_ends_the_rebuild(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await many_histories(service, count=10)
    project(service.dsn)
    monkeypatch.setattr(Parked, "__eq__", unequal)
    with pytest.raises(CheckpointConflict):
        rebuild(service.dsn)
    assert [(g.number, g.state) for g in present(service.dsn)] == [(1, "live")]


def test_progress_tells_the_rate_and_the_time_left() -> None:
    """Of this run alone: what a killed one has folded says nothing of the speed."""
    out, now = io.StringIO(), iter([10.0, 12.0, 14.0])
    meter = Meter(out, lambda: next(now))
    meter(100_000, 200_000)
    meter(150_000, 200_000)
    meter(200_000, 200_000)
    shown = [line.rstrip(" ") for line in out.getvalue().split("\r")]
    assert shown == [
        "",
        "[##########..........]  50%  100,000 of 200,000 events, …",
        "[###############.....]  75%  150,000 of 200,000 events, 25,000/s, 0:02 left",
        f"{'[####################] 100%  200,000 of 200,000 events, 25,000/s, 0:00 left':<78}\n",
    ]


@pytest.mark.parametrize(("seconds", "shown"), [(2, "0:02"), (71, "1:11"), (3_600 * 26 + 62, "26:01:02")])
def test_the_time_left_is_told_in_hours_if_need_be(seconds: int, shown: str) -> None:
    out, now = io.StringIO(), iter([0.0, 1.0])
    meter = Meter(out, lambda: next(now))
    meter(0, 1 + seconds)
    meter(1, 1 + seconds)
    assert f", {shown} left" in out.getvalue()


async def test_ranges_hold_every_key_once(service: Service) -> None:
    ids: list[UUID] = await many_histories(service, count=20)
    await service.commands.set_paused("q0", paused=True, reason=None)
    with connect_sync(service.dsn, name="test") as connection:
        for parts in (1, 2, 7, 1_000):
            ranges = plan.cut(connection, await service.log.head(), parts)
            assert ranges[0].first.int == 0
            assert ranges[-1].last.int == 2**128 - 1
            assert all(a.last.int + 1 == b.first.int for a, b in pairwise(ranges))
            for key in (*ids, queue_id("default", "q0")):
                assert sum(keys.first <= key <= keys.last for keys in ranges) == 1
            assert len(ranges) <= parts
