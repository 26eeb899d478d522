"""Waiting for the projector, without a database: who is woken, and when nobody is."""

import asyncio
from typing import Any, NoReturn, cast
from uuid import UUID, uuid4

import psycopg
import pytest

from events.deadline import after
from events.errors import StoreUnavailable
from query_side.read_model import ReadModel, Snapshot
from query_side.watch import ReadWatch


class Model:
    """Answers as ReadModel.fetch() does."""

    def __init__(self) -> None:
        self.checkpoint = 0
        self.settled: set[UUID] = set()
        self.looks = 0
        self.wanted: list[str] = []
        self.down = False

    async def fetch(self, _: str, parameters: dict[str, Any]) -> tuple[Snapshot, list[dict[str, Any]]]:
        self.looks += 1
        if self.down:
            raise StoreUnavailable("gone")
        rows = [{"id": task_id} for task_id in parameters["ids"] if task_id in self.settled]
        return Snapshot(self.checkpoint, "tag"), rows

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


async def test_a_notification_before_the_wait_is_not_missed(
    model: Model, watch: ReadWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came between the caller's read, which saw 4, and its wait: one look for all, at once."""
    monkeypatch.setattr(watch, "_seen", 5)
    model.checkpoint = 5
    task_id = uuid4()
    model.settled.add(task_id)
    await asyncio.wait_for(
        asyncio.gather(
            watch.reached(5, seen=4, deadline=after(30)),
            watch.settled(task_id, seen=4, deadline=after(30)),
            watch.settled(task_id, seen=4, deadline=after(30)),
        ),
        5,
    )
    assert model.looks == 1


async def test_a_wait_ends_at_its_deadline_and_leaves_nothing_behind(watch: ReadWatch) -> None:
    await watch.reached(5, seen=0, deadline=after(0.01))
    await watch.settled(uuid4(), seen=0, deadline=after(0.01))
    assert watch.waiting == 0


async def test_what_is_wanted_is_said_once_for_all_who_come_meanwhile(
    model: Model, watch: ReadWatch
) -> None:
    positions = (5, 7, 6, 7)
    await asyncio.gather(*(watch.reached(p, seen=0, deadline=after(0.05)) for p in positions))
    await watch.reached(6, seen=0, deadline=after(0.01))
    await watch.reached(9, seen=0, deadline=after(0.01), hurry=False)
    assert model.wanted == ["7"]


async def test_a_hint_that_cannot_be_given_is_no_error(model: Model, watch: ReadWatch) -> None:
    model.down = True
    await watch.reached(5, seen=0, deadline=after(0.05))
    model.down = False
    await watch.reached(6, seen=0, deadline=after(0.05))
    assert model.wanted == ["6"]


async def test_a_look_that_fails_wakes_nobody(
    model: Model, watch: ReadWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_seen", 5)
    model.down = True
    await watch.reached(5, seen=4, deadline=after(0.05))
    assert model.looks == 1


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
