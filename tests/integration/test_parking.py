"""An event that cannot be applied: parked, it holds up nobody; taken back, nothing of it is missing."""

import asyncio
import random
import threading
from uuid import UUID

import pytest

from command_side.commands import CancelTask, CompleteTask, RequeueTask, StartTask
from events.codec import EventMapper
from events.errors import CheckpointConflict
from events.ids import queue_id
from events.task_events import TaskStarted
from projector.fold import Entry, FoldStopped
from projector.follower import Follower
from projector.generations import ensure_live, live
from projector.keeping import keep
from projector.park import ParkRefused, park, unpark
from projector.rebuild import rebuild
from projector.verify import inspect, verify
from taskledger.postgres import connect_sync
from tests.integration.projection import (
    append_raw,
    execute,
    following,
    project,
    row,
    table,
)
from tests.support import Service, wait_until

BROKEN = b'{"from":"a later release"}'


async def poisoned(service: Service) -> tuple[UUID, int]:
    """A task whose second event nobody can read, as it would be with an event that a later release
    wrote: three more follow."""
    task = await service.create()
    await service.execute(task.id, StartTask(holder="h", worker="w"))
    position = (await service.log.read_stream(task.id))[-1].id
    await service.execute(task.id, CompleteTask(1, {"sum": 3}))
    execute(
        service.dsn,
        "update taskledger.task_events set state = %s where notification_id = %s",
        BROKEN,
        position,
    )
    return task.id, position


def mend(service: Service, task_id: UUID, position: int) -> None:
    """What an upgrade does: the event can be read."""
    record = TaskStarted(
        originator_id=task_id, originator_version=2, event_uid="u", attempt=1, holder="h", worker="w"
    )
    stored = EventMapper().encode(record)
    execute(
        service.dsn,
        "update taskledger.task_events set topic = %s, state = %s where notification_id = %s",
        stored.topic,
        stored.state,
        position,
    )


def halted(dsn: str) -> FoldStopped:
    with pytest.raises(FoldStopped) as stopped:
        project(dsn)
    return stopped.value


def sound(dsn: str) -> bool:
    """Live, rebuilt and verified all say the same."""
    assert inspect(dsn).differences == []
    assert rebuild(dsn).differences == ()
    assert inspect(dsn).differences == []
    return True


async def test_a_parked_event_takes_out_its_task_alone_until_it_is_taken_back(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    task_id, position = await poisoned(service)
    other = await service.create()
    assert halted(service.dsn).position == position

    parked = park(service.dsn, position, reason="release 2 reads it", by="ada")
    assert (parked.position, parked.originator_id, parked.version) == (position, task_id, 2)
    assert project(service.dsn) == await service.log.head()
    assert row(service.dsn, task_id)["version"] == 1
    assert row(service.dsn, task_id)["status"] == row(service.dsn, other.id)["status"] == "queued"
    assert sound(service.dsn)
    assert verify(service.dsn) == 0
    said = capsys.readouterr().out
    assert f"parked: position {position} (TaskStarted {task_id} version 2), by ada at " in said
    assert said.endswith(": no difference, 1 parked\n")

    with pytest.raises(ParkRefused, match=f"stays parked: position {position}: TaskStarted {task_id}"):
        unpark(service.dsn, position)
    mend(service, task_id, position)
    assert sound(service.dsn)  # still parked
    unpark(service.dsn, position)
    assert row(service.dsn, task_id)["status"] == "completed"
    assert sound(service.dsn)
    assert inspect(service.dsn).parked.events == ()


async def test_only_what_stands_in_the_way_can_be_parked(service: Service) -> None:
    before = await service.create()
    _, position = await poisoned(service)
    refused = {
        before.position: "has been applied",
        position: "",
        position + 1: "only the event that follows",
        10**9: "only the event that follows",
    }
    with pytest.raises(ParkRefused, match="no read tables yet"):
        park(service.dsn, position, reason="r", by="b")
    halted(service.dsn)
    for at, why in refused.items():
        if why:
            with pytest.raises(ParkRefused, match=why):
                park(service.dsn, at, reason="r", by="b")
    park(service.dsn, position, reason="r", by="b")
    with pytest.raises(ParkRefused, match="parked already"):
        park(service.dsn, position, reason="r", by="b")
    project(service.dsn)
    fine = await service.create()
    with pytest.raises(ParkRefused, match="can be applied"):
        park(service.dsn, fine.position, reason="r", by="b")
    with pytest.raises(ParkRefused, match="is not parked"):
        unpark(service.dsn, fine.position)
    execute(service.dsn, "update taskledger.projection_generations set schema_version = 'other'")
    with pytest.raises(ParkRefused, match="taskledger rebuild"):
        park(service.dsn, 1, reason="r", by="b")
    with pytest.raises(ParkRefused, match="taskledger rebuild"):
        unpark(service.dsn, position)


async def test_a_task_whose_creation_is_parked_has_no_row_until_it_is_taken_back(service: Service) -> None:
    task = await service.create(queue="q1")
    await service.execute(task.id, CancelTask())
    whole = (await service.log.read_stream(task.id))[0].state
    change = "update taskledger.task_events set state = %s where notification_id = %s"
    execute(service.dsn, change, BROKEN, task.position)
    other = await service.create()
    assert halted(service.dsn).position == task.position

    park(service.dsn, task.position, reason="r", by="b")
    project(service.dsn)
    assert [found["id"] for found in table(service.dsn)] == [other.id]
    assert sound(service.dsn)

    execute(service.dsn, change, whole, task.position)
    unpark(service.dsn, task.position)
    assert row(service.dsn, task.id)["status"] == "cancelled"
    assert sound(service.dsn)
    await service.execute(task.id, RequeueTask())
    project(service.dsn)
    assert sound(service.dsn)


async def test_of_a_queue_one_event_is_passed_over(service: Service) -> None:
    await service.create(queue="q1")
    await service.commands.set_paused("q1", paused=True, reason="first")
    position = await append_raw(service, queue_id("default", "q1"), 2, "QueueResumed", b"not json")
    assert halted(service.dsn).position == position
    park(service.dsn, position, reason="r", by="b")
    project(service.dsn)
    await append_raw(
        service,
        queue_id("default", "q1"),
        3,
        "QueuePaused",
        b'{"event_uid":"u","tenant":"default","queue":"q1","reason":"second"}',
    )
    project(service.dsn)
    assert [found["reason"] for found in table(service.dsn, "queues")] == ["second"]
    assert sound(service.dsn)

    valid = b'{"event_uid":"u","tenant":"default","queue":"q1"}'
    execute(
        service.dsn,
        "update taskledger.task_events set state = %s where notification_id = %s",
        valid,
        position,
    )
    unpark(service.dsn, position)
    assert [found["reason"] for found in table(service.dsn, "queues")] == ["second"]
    assert sound(service.dsn)


async def test_a_value_that_no_column_holds_stops_it_at_its_position(service: Service) -> None:
    before = [await service.create() for _ in range(5)]
    poison = await service.create()
    created = EventMapper().decode((await service.log.read_stream(poison.id))[0])
    created = created.model_copy(update={"max_attempts": 2**63})  # as no release of ours would write it
    state = EventMapper().encode(created).state
    execute(
        service.dsn,
        "update taskledger.task_events set state = %s where notification_id = %s",
        state,
        poison.position,
    )
    after = [await service.create() for _ in range(5)]
    stopped = halted(service.dsn)
    assert (stopped.position, str(poison.id) in str(stopped)) == (poison.position, True)
    assert {found["id"] for found in table(service.dsn)} == {task.id for task in before}

    park(service.dsn, poison.position, reason="r", by="b")
    project(service.dsn)
    assert {found["id"] for found in table(service.dsn)} == {task.id for task in before + after}
    assert sound(service.dsn)


async def test_a_batch_read_before_an_event_is_taken_back_is_read_again(service: Service) -> None:
    task = await service.create()
    await service.execute(task.id, StartTask(holder="h", worker="w"))
    position = (await service.log.read_stream(task.id))[-1].id
    change = "update taskledger.task_events set state = %s where notification_id = %s"
    execute(service.dsn, change, BROKEN, position)
    halted(service.dsn)
    park(service.dsn, position, reason="r", by="b")
    project(service.dsn)
    mend(service, task.id, position)
    await service.execute(task.id, CompleteTask(1, 1))

    class Slow(Follower):
        def _next(self, upto: int | None) -> list[Entry] | None:
            batch = super()._next(upto)
            unpark(service.dsn, position)
            return batch

    with connect_sync(service.dsn, name="test") as connection:
        follower = Slow(connection, EventMapper(), ensure_live(connection))
        with pytest.raises(CheckpointConflict):
            follower.step()
    assert row(service.dsn, task.id)["status"] == "running"
    project(service.dsn)
    assert row(service.dsn, task.id)["status"] == "completed"
    assert sound(service.dsn)


async def test_parking_and_taking_back_under_load_loses_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A projector folds on while events are parked and taken back: no task misses what came meanwhile."""
    monkeypatch.setattr("projector.runner.HALTED_SECONDS", 0.05)
    stop, choice = threading.Event(), random.Random(7)
    with following(service.dsn, poll_seconds=0.05) as projector:

        async def load() -> None:
            while not stop.is_set():
                task = await service.create()
                await service.execute(task.id, StartTask(holder="h", worker="w"))
                await service.execute(task.id, CompleteTask(1, 1))

        async def part(_: int) -> None:
            task_id, position = await poisoned(service)
            await asyncio.to_thread(
                wait_until,
                lambda: (
                    f"park {position} " in (projector.status().waiting_for or "")
                    or projector.status().checkpoint >= position
                ),
                "it stands, or read the event before it was broken",
            )
            if projector.status().checkpoint < position:
                await asyncio.to_thread(park, service.dsn, position, reason="r", by="b")
                await asyncio.sleep(choice.uniform(0, 0.05))
                mend(service, task_id, position)
                await asyncio.to_thread(unpark, service.dsn, position)
            else:
                mend(service, task_id, position)

        loading = asyncio.create_task(load())
        for turn in range(5):
            await part(turn)
        stop.set()
        await loading
        head = await service.log.head()
        await asyncio.to_thread(
            wait_until, lambda: projector.status().checkpoint == head, "the projector is level"
        )
    assert inspect(service.dsn).differences == []
    assert {found["status"] for found in table(service.dsn)} == {"completed"}


async def test_counts_that_were_kept_without_the_event_are_forgotten(service: Service) -> None:
    """Those from its position on; the ones before it are as they were, and `verify` agrees at each step."""
    before = [await service.create() for _ in range(4)]
    task_id, position = await poisoned(service)
    halted(service.dsn)
    with connect_sync(service.dsn, name="test") as connection:
        early = live(connection)
        assert early is not None
        assert keep(connection, early, every=2)
        park(service.dsn, position, reason="release 2 reads it", by="ada")
        await service.execute(before[0].id, CancelTask())
        project(service.dsn)
        late = live(connection)
        assert late is not None
        assert keep(connection, late, every=2)
        kept = "select position from taskledger.kept_counts order by position"
        assert connection.execute(kept).fetchall() == [(early.checkpoint,), (late.checkpoint,)]
        assert inspect(service.dsn).differences == []

        mend(service, task_id, position)
        unpark(service.dsn, position)
        assert connection.execute(kept).fetchall() == [(early.checkpoint,)]
        assert keep(connection, late, every=2)
    assert inspect(service.dsn).differences == []
