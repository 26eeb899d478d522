"""Rebuild: the same table from the log, switched without a gap, and back."""

import asyncio
import threading

import pytest

from command_side.commands import StartTask
from events.errors import SchemaNotReady
from projector.fold import FoldStopped
from projector.generations import create
from projector.leadership import Leadership
from projector.rebuild import drop_retired, rebuild, rollback
from projector.verify import inspect
from taskledger.postgres import connect_sync
from tests.integration.projection import (
    execute,
    following,
    live_number,
    many_histories,
    present,
    project,
    row,
    table,
)
from tests.support import Service, eventually, wait_until

TABLES = ("tasks", "counts", "activity", "queues")


async def test_a_rebuild_gives_the_same_tables(service: Service) -> None:
    await many_histories(service)
    project(service.dsn)
    before = {name: table(service.dsn, name) for name in TABLES}
    seen: list[tuple[int, int]] = []

    done = await asyncio.to_thread(rebuild, service.dsn, progress=lambda at, of: seen.append((at, of)))

    assert (done.generation, done.replaced, done.differences) == (2, 1, ())
    assert done.checkpoint == await service.log.head()
    assert live_number(service.dsn) == 2
    assert {name: table(service.dsn, name) for name in TABLES} == before
    assert [(g.number, g.state) for g in present(service.dsn)] == [(1, "retired"), (2, "live")]
    assert all(at <= of for at, of in seen)


async def test_falsified_rows_are_named_and_put_right(service: Service) -> None:
    ids = await many_histories(service, count=10)
    project(service.dsn)
    before = table(service.dsn)
    statuses = {r["id"]: r["status"] for r in before}
    execute(service.dsn, "update taskledger_read_g1.tasks set status = 'dead' where id = %s", ids[0])
    execute(service.dsn, "delete from taskledger_read_g1.tasks where id = %s", ids[1])
    execute(service.dsn, "update taskledger_read_g1.counts set tasks = tasks + 1 where kind = 'k0'")

    done = rebuild(service.dsn)

    assert f"tasks {ids[0]}: status is dead, the log says {statuses[ids[0]]}" in done.differences
    assert f"tasks {ids[1]}: the old table lacks the row" in done.differences
    assert any(line.startswith("counts default/") for line in done.differences)
    assert table(service.dsn) == before
    assert inspect(service.dsn).count == 0


async def test_a_row_the_log_does_not_know_is_named(service: Service) -> None:
    task = await service.create()
    project(service.dsn)
    execute(
        service.dsn,
        "create temp table copy as select * from taskledger_read_g1.tasks;"
        "update copy set id = gen_random_uuid(); insert into taskledger_read_g1.tasks select * from copy",
    )
    done = rebuild(service.dsn)
    assert len(done.differences) == 1
    assert done.differences[0].endswith("the log has no such row")
    assert [r["id"] for r in table(service.dsn)] == [task.id]


async def test_at_most_twenty_differences_are_listed(service: Service) -> None:
    for _ in range(30):
        await service.create()
    project(service.dsn)
    execute(service.dsn, "update taskledger_read_g1.tasks set worker = 'x'")
    assert len(rebuild(service.dsn).differences) == 20


async def test_a_rebuild_under_load_and_a_running_projector(service: Service) -> None:
    """Both generations go on: the new one is read, the old one is there to go back to."""
    await many_histories(service, count=20)
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            task = await service.create()
            await service.execute(task.id, StartTask(holder="h", worker="w"))

    loading = asyncio.create_task(load())
    with following(service.dsn) as projector:
        wait_until(lambda: projector.status().checkpoint > 0, "the projector runs")
        first = await asyncio.to_thread(rebuild, service.dsn)
        second = await asyncio.to_thread(rebuild, service.dsn)
        stop.set()
        await loading
        head = await service.log.head()

        async def all_level() -> bool:
            return [g.checkpoint for g in present(service.dsn)] == [head] * 3

        await eventually(all_level)
        assert projector.status().ready
    assert (first.differences, second.differences) == ((), ())
    assert [g.state for g in present(service.dsn)] == ["retired", "retired", "live"]
    assert table(service.dsn, generation=1) == table(service.dsn, generation=3)
    assert inspect(service.dsn).differences == []


async def test_rolling_back_shows_no_older_state(service: Service) -> None:
    await service.create()
    project(service.dsn)
    rebuild(service.dsn)
    late = await service.create()
    head = project(service.dsn)  # the live generation only: no projector runs

    assert rollback(service.dsn) == 1
    assert live_number(service.dsn) == 1
    assert row(service.dsn, late.id)["status"] == "queued"
    assert [(g.state, g.checkpoint) for g in present(service.dsn)] == [("live", head), ("retired", head)]
    assert inspect(service.dsn).differences == []


async def test_pruning_drops_what_is_retired_and_a_projector_forgets_it(service: Service) -> None:
    await service.create()
    with following(service.dsn) as projector:
        wait_until(lambda: projector.status().checkpoint == 1, "the projector runs")
        await asyncio.to_thread(rebuild, service.dsn)
        assert await asyncio.to_thread(drop_retired, service.dsn) == [1]
        task = await service.create()
        wait_until(lambda: projector.status().checkpoint == task.position, "it goes on")
    assert [g.number for g in present(service.dsn)] == [2]
    assert execute(service.dsn, "select from pg_namespace where nspname = 'taskledger_read_g1'") == 0
    with pytest.raises(SchemaNotReady):
        rollback(service.dsn)


async def test_what_a_dead_rebuild_left_behind_is_dropped_by_the_next(service: Service) -> None:
    await service.create()
    project(service.dsn)
    await service.create()
    with connect_sync(service.dsn, name="test") as connection, connection.transaction():
        left = create(connection, "building")
    rebuild(service.dsn)
    assert [(g.number, g.state) for g in present(service.dsn)] == [(1, "retired"), (3, "live")]
    assert left.number == 2


async def test_a_rebuild_under_way_is_left_alone_by_another(service: Service) -> None:
    await service.create()
    project(service.dsn)
    with connect_sync(service.dsn, name="test") as connection, connection.transaction():
        other = create(connection, "building")
    with Leadership(service.dsn, name="other-rebuild", idle_seconds=0) as leadership:
        assert leadership.leads(other.number)
        rebuild(service.dsn)
    assert [g.state for g in present(service.dsn)] == ["retired", "building", "live"]


async def test_a_rebuild_that_cannot_fold_leaves_the_live_generation(service: Service) -> None:
    await service.create()
    project(service.dsn)
    execute(service.dsn, "update taskledger.task_events set topic = 'TaskEncrypted'")
    with pytest.raises(FoldStopped):
        rebuild(service.dsn)
    assert [(g.number, g.state) for g in present(service.dsn)] == [(1, "live")]


async def test_two_rebuilds_at_once_both_end_level(service: Service) -> None:
    await many_histories(service, count=10)
    project(service.dsn)
    threads = [threading.Thread(target=rebuild, args=(service.dsn,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(g.state for g in present(service.dsn)) == ["live", "retired", "retired"]
    assert inspect(service.dsn).differences == []


async def test_the_first_generation_can_come_from_a_rebuild(service: Service) -> None:
    await service.create()
    done = rebuild(service.dsn)
    assert (done.generation, done.replaced, done.checkpoint) == (1, None, 1)
    assert len(table(service.dsn)) == 1


async def test_a_generation_of_another_release_is_replaced(service: Service) -> None:
    await service.create()
    project(service.dsn)
    execute(service.dsn, "update taskledger.projection_generations set schema_version = 'old'")
    execute(service.dsn, "alter table taskledger_read_g1.tasks drop column worker, add column extra int")
    with following(service.dsn) as projector:
        wait_until(lambda: "rebuild" in (projector.status().waiting_for or ""), "it waits")
        assert (await asyncio.to_thread(rebuild, service.dsn)).differences == ()
        task = await service.create()
        wait_until(lambda: projector.status().checkpoint == task.position, "it goes on")
