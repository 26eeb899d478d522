"""A rebuild that is ended in its middle: the next one goes on where it was, or says why it cannot."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from command_side.commands import StartTask
from events.errors import CheckpointConflict
from events.migrate import draw_tag
from projector import filling, indexes, plan
from projector.bulk import fold_range
from projector.fold import FoldStopped
from projector.park import park, unpark
from projector.plan import KeyRange
from projector.rebuild import drop_retired, rebuild
from projector.verify import inspect
from tests.integration.projection import (
    append_raw,
    execute,
    live_number,
    many_histories,
    present,
    project,
    table,
)
from tests.support import Service, eventually

TABLES = ("tasks", "counts", "activity", "queues")


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short log has many."""
    monkeypatch.setattr(plan, "RANGE_EVENTS", 12)


class Killed(KeyboardInterrupt):
    """What Ctrl-C raises, wherever the process is. The generation stays, as after SIGKILL."""


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[KeyRange]:
    """The ranges that were begun; see interrupted()."""
    begun: list[KeyRange] = []
    original = fold_range

    def recorded(reader: Any, writer: Any, work: Any, keys: KeyRange) -> Any:
        begun.append(keys)
        return original(reader, writer, work, keys)

    monkeypatch.setattr(filling, "fold_range", recorded)
    return begun


def interrupted(service: Service, after: int) -> list[str]:
    """Ended when so many ranges are folded and the next one is not yet. Returns what it said."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(filling, "fold_one", _ending(filling.fold_one, after))
        with pytest.raises(Killed):
            rebuild(service.dsn, processes=1, say=said.append)
    return said


def _ending(call: Callable[..., Any], after: int) -> Callable[..., Any]:
    count = iter(range(after))

    def ended(*arguments: Any) -> Any:
        if next(count, None) is None:
            raise Killed
        return call(*arguments)

    return ended


async def prepared(service: Service) -> dict[str, list[dict[str, Any]]]:
    """A log with its live tables, which are returned."""
    await many_histories(service, count=25)
    project(service.dsn)
    return {name: table(service.dsn, name) for name in TABLES}


async def test_what_is_folded_is_not_folded_again(service: Service, folded: list[KeyRange]) -> None:
    before = await prepared(service)
    assert interrupted(service, 3) == ["generation 2 is kept: the next `taskledger rebuild` resumes it"]
    first = set(folded)
    assert len(first) == 3
    done = sum(map(int, _events(service)))
    folded.clear()
    assert len(interrupted(service, 2)) == 2
    folded.clear()
    said: list[str] = []
    seen: list[tuple[int, int]] = []

    finished = rebuild(
        service.dsn, processes=1, say=said.append, progress=lambda at, of: seen.append((at, of))
    )

    head = await service.log.head()
    assert (finished.generation, finished.differences, finished.checkpoint) == (2, (), head)
    assert said[0].startswith("resuming generation 2: ")
    assert said[0].endswith(f" of {head} events are folded")
    assert seen[0][0] > done
    assert seen[-1] == (head, head)
    assert not first & set(folded)
    assert {name: table(service.dsn, name) for name in TABLES} == before
    assert [(g.number, g.state) for g in present(service.dsn)] == [(1, "retired"), (2, "live")]
    assert inspect(service.dsn).differences == []
    left_behind = (
        "select from pg_tables where schemaname = 'taskledger_read_g2' and tablename like 'plan%%'"
    )
    assert execute(service.dsn, left_behind) == 0


def _events(service: Service) -> list[str]:
    return [row["events"] or "0" for row in table(service.dsn, "plan_ranges", 2)]


async def test_what_came_meanwhile_is_followed(service: Service) -> None:
    await prepared(service)
    interrupted(service, 2)
    late = await service.create()
    await service.execute(late.id, StartTask(holder="h", worker="w"))
    head = project(service.dsn)
    assert rebuild(service.dsn).checkpoint == head
    assert inspect(service.dsn).differences == []


async def test_a_dead_rebuilds_last_range_is_waited_for(service: Service, folded: list[KeyRange]) -> None:
    """The server may still be committing what the killed process has sent: the range is then folded once,
    whoever is faster."""
    await prepared(service)
    interrupted(service, 2)
    (number,) = [g.number for g in present(service.dsn) if g.state == "building"]
    access = filling.Access(service.dsn, "-c enable_seqscan=off")
    with access.connections() as (reader, writer):
        work, obstacle = plan.load(writer, number)
        assert obstacle is None
        keys = plan.left(writer, number)[0]
        with writer.transaction():
            assert plan.claim(writer, number, keys) is None
            next_one = asyncio.create_task(asyncio.to_thread(rebuild, service.dsn, processes=1))
            await _until_blocked(service)
            events = fold_range(reader, writer, work, keys)
            filling.add_counters(writer, number, events.totals)
            plan.note(writer, number, keys, events.events)
        finished = await next_one
    assert finished.differences == ()
    assert keys not in folded
    assert inspect(service.dsn).differences == []


async def _until_blocked(service: Service) -> None:
    waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"

    async def blocked() -> bool:
        return await asyncio.to_thread(execute, service.dsn, waiting) > 0

    await eventually(blocked, "the range to be wanted twice")


@pytest.mark.parametrize("built", [0, 1, 3])
async def test_indexes_that_are_there_are_not_built_again(
    service: Service, monkeypatch: pytest.MonkeyPatch, built: int
) -> None:
    before = await prepared(service)
    with monkeypatch.context() as patched:
        patched.setattr(indexes, "build", _building_only(built))
        with pytest.raises(Killed):
            rebuild(service.dsn)
    assert rebuild(service.dsn).differences == ()
    assert {name: table(service.dsn, name) for name in TABLES} == before
    defined = [
        {str(d).replace(f"_g{number}", "") for d in _definitions(service, number)} for number in (1, 2)
    ]
    assert defined[0] == defined[1]


def _building_only(some: int) -> Callable[..., None]:
    original = indexes.build

    def build(connections: Any, generation: int, later: indexes.Later) -> None:
        few = dict(list(later.build.items())[:some])
        original(connections, generation, indexes.Later(few, later.attach if some > 1 else {}))
        raise Killed

    return build


def _definitions(service: Service, generation: int) -> list[str]:
    import psycopg

    with psycopg.connect(service.dsn) as connection:
        found = connection.execute(
            "select indexdef from pg_indexes where schemaname = %s", [f"taskledger_read_g{generation}"]
        )
        return [row[0] for row in found]


async def test_one_that_was_only_to_be_switched_is_only_switched(
    service: Service, monkeypatch: pytest.MonkeyPatch, folded: list[KeyRange]
) -> None:
    await prepared(service)
    with monkeypatch.context() as patched:
        patched.setattr("projector.rebuild._switch", _ending(lambda: None, 0))
        with pytest.raises(Killed):
            rebuild(service.dsn)
    await service.create()
    head = project(service.dsn)
    folded.clear()
    said: list[str] = []
    done = rebuild(service.dsn, say=said.append)
    assert said == [f"resuming generation 2: {head - 1} of {head} events are folded"]
    assert (done.generation, done.checkpoint, folded) == (2, head, [])


async def test_another_definition_is_not_resumed(service: Service) -> None:
    await prepared(service)
    interrupted(service, 2)
    other = "update taskledger.projection_generations set schema_version = 'old' where state = 'building'"
    execute(service.dsn, other)
    assert (
        _starts_over(service) == "another release has begun it, with another definition of the read tables"
    )


async def test_a_restored_log_is_not_resumed(service: Service) -> None:
    await prepared(service)
    interrupted(service, 2)
    draw_tag(service.dsn)
    assert _starts_over(service) == "the log was restored"


async def test_another_log_is_not_resumed(service: Service) -> None:
    await prepared(service)
    interrupted(service, 2)
    head = await service.log.head()
    execute(service.dsn, "update taskledger_read_g2.plan set upto_at = upto_at - interval '1 us'")
    reason = _starts_over(service)
    assert reason == f"the log is another one: at position {head} is not the event that was there"


async def test_a_log_that_was_restored_after_the_fold_is_not_resumed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepared(service)
    with monkeypatch.context() as patched:
        patched.setattr("projector.rebuild._switch", _ending(lambda: None, 0))
        with pytest.raises(Killed):
            rebuild(service.dsn)
    execute(
        service.dsn,
        "update taskledger.checkpoints set event_at = event_at - interval '1 us' where name = 'tasks/2'",
    )
    assert _starts_over(service).startswith("the log was restored: at position ")


async def test_what_an_earlier_release_left_is_not_resumed(service: Service) -> None:
    """It kept no plan: nobody knows which rows are there."""
    await prepared(service)
    interrupted(service, 2)
    execute(service.dsn, "drop table taskledger_read_g2.plan, taskledger_read_g2.plan_ranges")
    assert _starts_over(service) == "nothing of it was finished"


async def test_one_whose_parked_events_changed_is_not_resumed(service: Service) -> None:
    await prepared(service)
    task = await service.create()
    bad = await append_raw(service, task.id, 2, "TaskStarted", b'{"from":"a later release"}')
    with pytest.raises(FoldStopped):
        project(service.dsn)
    park(service.dsn, bad, reason="why", by="me")
    project(service.dsn)
    interrupted(service, 2)
    execute(service.dsn, "update taskledger.task_events set topic = 'Note' where notification_id = %s", bad)
    unpark(service.dsn, bad)
    assert _starts_over(service) == "an event was parked, or is no longer"


def _starts_over(service: Service) -> str:
    """And ends well. The reason that it gives."""
    said: list[str] = []
    done = rebuild(service.dsn, say=said.append)
    assert (done.generation, done.differences) == (3, ())
    assert [(g.number, g.state) for g in present(service.dsn)] == [(1, "retired"), (3, "live")]
    assert inspect(service.dsn).differences == []
    (line,) = said
    assert line.startswith("generation 2 cannot be resumed: ")
    assert line.endswith("; starting over")
    return line.removeprefix("generation 2 cannot be resumed: ").removesuffix("; starting over")


async def test_a_range_that_cannot_be_folded_leaves_nothing_to_resume(
    service: Service, folded: list[KeyRange]
) -> None:
    """It stores nothing, so that it is not taken for done; and the rebuild is given up."""
    await prepared(service)
    execute(
        service.dsn,
        "update taskledger.task_events set state = '{}' where notification_id in"
        " (select min(notification_id) from taskledger.task_events where topic = 'TaskStarted')",
    )
    with pytest.raises(FoldStopped):
        rebuild(service.dsn, processes=1)
    assert len(folded) > 5
    assert [(g.number, g.state) for g in present(service.dsn)] == [(1, "live")]


LOSING_ONE = """
import os, signal, sys
from projector import filling, plan, rebuild
plan.RANGE_EVENTS = 12
original = filling.fold_one
def dying(reader, writer, work, keys):
    third = "select first from taskledger_read_g2.plan_ranges order by first offset 2 limit 1"
    if reader.execute(third).fetchone() == (keys.first,):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(reader, writer, work, keys)
filling.fold_one = dying
try:
    rebuild.rebuild(sys.argv[1], processes=2, say=print)
except filling.RebuildInterrupted as error:
    print(error)
"""


async def test_a_killed_process_of_a_rebuild_costs_its_range_alone(service: Service) -> None:
    await prepared(service)
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", LOSING_ONE, service.dsn],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert ended.stdout.splitlines() == [
        "generation 2 is kept: the next `taskledger rebuild` resumes it",
        "a process of the rebuild was ended: what is folded is kept, run `taskledger rebuild` again",
    ]
    assert rebuild(service.dsn).generation == 2
    assert inspect(service.dsn).differences == []


async def test_one_that_was_taken_over_is_not_dropped_under_the_other(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection that leads is lost, another rebuild resumes the generation and makes it live: the
    first one ends with an error and touches nothing."""
    await prepared(service)

    def overtaken(*_: Any) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(plan, "RANGE_EVENTS", 12)
        lost = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s"
        execute(service.dsn, lost, "taskledger-rebuild-leader")
        assert rebuild(service.dsn).generation == 2
        raise CheckpointConflict("another rebuild was faster")

    monkeypatch.setattr("projector.rebuild._prove", overtaken)
    with pytest.raises(CheckpointConflict):
        rebuild(service.dsn)
    assert live_number(service.dsn) == 2
    assert inspect(service.dsn).differences == []


async def test_pruning_drops_what_a_dead_rebuild_left(service: Service) -> None:
    await prepared(service)
    interrupted(service, 2)
    assert drop_retired(service.dsn) == [2]
    assert [(g.number, g.state) for g in present(service.dsn)] == [(1, "live")]
