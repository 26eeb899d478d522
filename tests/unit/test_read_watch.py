"""Waiting for the projector, without a database: who is woken, with what, and when nobody is."""

import asyncio
from typing import Any, NoReturn, cast
from uuid import UUID, uuid4

import psycopg
import pytest

from events.deadline import after
from events.errors import LogRewound, ReadModelLagging, StoreUnavailable
from events.position import PositionToken
from query_side.consistency import Consistency
from query_side.read_model import ReadModel, Snapshot
from query_side.watch import ReadWatch, Seen
from tests.support import eventually


class Model:
    """Answers as ReadModel.fetch() does, so many rows at a time."""

    def __init__(self) -> None:
        self.checkpoint = 0
        self.settled: set[UUID] = set()
        self.looks = 0
        self.wanted: list[str] = []
        self.down = False
        self.page = 100
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def fetch(self, _: str, parameters: dict[str, Any]) -> tuple[Snapshot, list[dict[str, Any]]]:
        self.looks += 1
        found = [task_id for task_id in parameters["ids"] if task_id in self.settled]
        checkpoint = self.checkpoint
        await self.go_on.wait()
        if self.down:
            raise StoreUnavailable("gone")
        return Snapshot(checkpoint, "tag"), [
            {"id": task_id, "matched": len(found)} for task_id in found[: self.page]
        ]

    async def read(self, _: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("gone")
        self.wanted.append(parameters["position"])
        return []


async def _refuse() -> NoReturn:
    raise psycopg.OperationalError


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def watch(model: Model) -> ReadWatch:
    return ReadWatch(cast("ReadModel", model), _refuse)


async def _listening(watch: ReadWatch) -> None:
    """What the listener does once it has connected."""
    await watch.hear("")
    watch.listener.hearing = True


async def test_a_notification_before_the_wait_is_not_missed(model: Model, watch: ReadWatch) -> None:
    """It came between the caller's read, which saw 4, and its wait: one look for all, at once."""
    await _listening(watch)
    model.checkpoint = 5
    await watch.hear("5")
    task_id = uuid4()
    model.settled.add(task_id)
    looks = model.looks
    _, one, two = await asyncio.wait_for(
        asyncio.gather(
            watch.reached(5, seen=4, deadline=after(30)),
            watch.settled(task_id, seen=4, deadline=after(30)),
            watch.settled(task_id, seen=4, deadline=after(30)),
        ),
        5,
    )
    for found in (one, two):
        assert found is not None
        assert (found[0].checkpoint, found[1]["id"]) == (5, task_id)
    assert model.looks <= looks + 2


async def test_one_look_brings_all_that_are_settled_and_wakes_no_other(
    model: Model, watch: ReadWatch
) -> None:
    """However many wait, and though a look brings only so much at once."""
    await _listening(watch)
    ids = [uuid4() for _ in range(50)]
    waits: list[asyncio.Task[Seen | None]] = [
        asyncio.create_task(watch.settled(i, seen=0, deadline=after(30))) for i in ids
    ]
    await asyncio.sleep(0)
    model.settled.update(ids[:20])
    looks = model.looks
    await watch.hear("1")
    assert None not in await asyncio.wait_for(asyncio.gather(*waits[:20]), 5)
    assert model.looks == looks + 1
    model.settled.update(ids[20:40])
    model.page = 7
    await watch.hear("2")
    assert None not in await asyncio.wait_for(asyncio.gather(*waits[20:40]), 5)
    assert model.looks == looks + 1 + 3
    assert not any(wait.done() for wait in waits[40:])
    watch.close()
    assert await asyncio.gather(*waits[40:]) == [None] * 10


async def test_who_comes_during_a_look_is_looked_for_afterwards(model: Model, watch: ReadWatch) -> None:
    await _listening(watch)
    model.checkpoint = 5
    await watch.hear("5")
    early, late = uuid4(), uuid4()
    model.go_on.clear()
    first = asyncio.create_task(watch.settled(early, seen=4, deadline=after(30)))
    looks = model.looks

    async def looking() -> bool:
        return model.looks > looks

    await eventually(looking)
    model.settled.add(late)
    second = asyncio.create_task(watch.settled(late, seen=4, deadline=after(30)))
    await asyncio.sleep(0)
    model.go_on.set()
    found = await asyncio.wait_for(second, 5)
    assert found is not None
    watch.close()
    assert await first is None


async def test_a_wait_ends_at_its_deadline_and_leaves_nothing_behind(watch: ReadWatch) -> None:
    await watch.reached(5, seen=0, deadline=after(0.01))
    assert await watch.settled(uuid4(), seen=0, deadline=after(0.01)) is None
    assert watch.waiting == 0


async def test_what_is_wanted_is_said_once_for_all_who_come_meanwhile(
    model: Model, watch: ReadWatch
) -> None:
    positions = (5, 7, 6, 7)
    await asyncio.gather(*(watch.reached(p, seen=0, deadline=after(0.05)) for p in positions))
    await watch.reached(6, seen=0, deadline=after(0.01))
    await watch.reached(9, seen=0, deadline=after(0.01), hurry=False)
    assert model.wanted == ["7", "6"]


async def test_a_hint_that_cannot_be_given_is_no_error(model: Model, watch: ReadWatch) -> None:
    model.down = True
    await watch.reached(5, seen=0, deadline=after(0.05))
    model.down = False
    await watch.reached(6, seen=0, deadline=after(0.05))
    assert model.wanted == ["6"]


async def test_who_waits_for_one_task_gets_a_row_of_his_own(model: Model, watch: ReadWatch) -> None:
    """What is done to it, such as opening sealed text, is done to nobody else's."""
    await _listening(watch)
    task_id = uuid4()
    waiting = [asyncio.create_task(watch.settled(task_id, seen=4, deadline=after(30))) for _ in range(2)]
    await asyncio.sleep(0)
    model.checkpoint = 5
    model.settled.add(task_id)
    await watch.hear("5")
    (_, one), (_, other) = [found for found in await asyncio.gather(*waiting) if found is not None]
    assert one == other
    assert one is not other


async def test_a_look_from_before_what_a_waiter_has_seen_tells_him_nothing(
    model: Model, watch: ReadWatch
) -> None:
    """The task was settled then, and has been requeued since: that is what he saw."""
    await _listening(watch)
    task_id = uuid4()
    model.settled.add(task_id)
    model.checkpoint = 5
    late = asyncio.create_task(watch.settled(task_id, seen=6, deadline=after(0.2)))
    await asyncio.sleep(0)
    await watch.hear("5")
    assert await late is None


async def test_a_look_that_fails_wakes_nobody(model: Model, watch: ReadWatch) -> None:
    await _listening(watch)
    looks = model.looks
    model.down = True
    await watch.hear("5")
    await watch.reached(5, seen=4, deadline=after(0.05))
    assert model.looks == looks + 1


async def test_closing_ends_every_wait(watch: ReadWatch) -> None:
    waits = asyncio.gather(
        watch.reached(5, seen=0, deadline=after(30)),
        watch.settled(uuid4(), seen=0, deadline=after(30)),
    )
    await asyncio.sleep(0)
    watch.close()
    await asyncio.wait_for(waits, 5)
    await asyncio.wait_for(watch.reached(9, seen=0, deadline=after(30)), 5)


async def test_it_goes_on_trying_to_listen(watch: ReadWatch) -> None:
    running = asyncio.create_task(watch.run())
    done, _ = await asyncio.wait({running}, timeout=0.2)
    assert not done
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


class Reads:
    def __init__(self, model: Model) -> None:
        self.count = 0
        self._model = model

    async def __call__(self) -> tuple[Snapshot, str]:
        self.count += 1
        return Snapshot(self._model.checkpoint, "tag"), "found"


async def test_a_read_that_would_be_in_vain_is_not_begun(model: Model, watch: ReadWatch) -> None:
    """The listener knows that the table is behind; the read comes with the notification, and once."""
    await _listening(watch)
    read, consistency = Reads(model), Consistency(watch, budget_seconds=30)
    waiting = asyncio.create_task(consistency.at(PositionToken(3, "tag"), read))
    for checkpoint in (1, 2):
        model.checkpoint = checkpoint
        await watch.hear(str(checkpoint))
        await asyncio.sleep(0)
        assert read.count == 0
    model.checkpoint = 3
    await watch.hear("3")
    snapshot, found = await asyncio.wait_for(waiting, 5)
    assert (snapshot.checkpoint, found, read.count) == (3, "found", 1)
    await consistency.at(PositionToken(3, "tag"), read)
    assert read.count == 2


async def test_what_was_heard_never_stands_for_what_is_read(model: Model, watch: ReadWatch) -> None:
    """A notification of another generation runs ahead of the live one: nothing old is given, and the
    reader does not ask over and over."""
    await _listening(watch)
    model.checkpoint = 2
    await watch.hear("7")
    read, consistency = Reads(model), Consistency(watch, budget_seconds=0.3)
    with pytest.raises(ReadModelLagging):
        await consistency.at(PositionToken(5, "tag"), read)
    assert read.count <= 3


async def test_another_logs_position_is_refused_at_once(model: Model, watch: ReadWatch) -> None:
    await _listening(watch)
    with pytest.raises(LogRewound):
        await asyncio.wait_for(
            Consistency(watch, budget_seconds=60).at(PositionToken(5, "other"), Reads(model)), 5
        )
