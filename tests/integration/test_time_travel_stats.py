"""GET /stats?as_of= is what the counters were: held against a fresh fold of the log, at every position."""

from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from command_side.commands import CancelTask, QueueDue, StartTask
from events.append import RecordedEvent
from events.codec import EventMapper
from events.ids import as_uuid
from events.task_events import TaskEvent
from events.task_state import TaskState, evolve
from projector.fold import ACTIVITIES
from projector.follower import Follower
from projector.generations import ensure_live, live
from projector.keeper import Keeper
from projector.keeping import keep, next_gap, put
from projector.rebuild import drop_retired, rebuild
from projector.verify import inspect
from query_side.overview import STATUSES
from taskledger.postgres import connect_sync
from tests.integration.projection import execute, many_histories, project
from tests.integration.query import query_api
from tests.support import Service, eventually, now

EVERY = 7


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with query_api(dsn) as client:
        yield client


async def _history(service: Service) -> list[RecordedEvent]:
    """All sorts of tasks, scheduled ones among them, and payloads that look like it."""
    soon, later = now() + timedelta(seconds=0.2), now() + timedelta(hours=1)
    due = await service.create(run_at=soon, queue="q0", kind="k0")
    given_up = await service.create(run_at=later, queue="q0", kind="k0")
    await service.create(run_at=later, payload={"scheduled": True})
    looks_like = await service.create(payload={"scheduled": True})
    await many_histories(service, count=10)
    await service.execute(given_up.id, CancelTask())
    await service.execute(looks_like.id, StartTask(holder="h", worker="w"))

    async def queued() -> bool:
        service.clock.observe(now())
        await service.execute(due.id, QueueDue())
        return (await service.state(due.id)).status == "queued"

    await eventually(queued)
    await service.execute(due.id, StartTask(holder="h", worker="w"))
    return await service.log.read_after(0, limit=10_000)


def _expected(events: list[RecordedEvent]) -> list[dict[str, Any]]:
    """Of each position from 0 on: the counts, by a fresh fold."""
    mapper, states = EventMapper(), dict[UUID, TaskState]()
    found = [_stats(states)]
    for event in events:
        record = mapper.decode(event)
        if isinstance(record, TaskEvent):
            task = as_uuid(event.originator_id)
            states[task] = evolve(states.get(task), record, at=event.recorded_at, position=event.id)
        found.append(_stats(states))
    return found


def _stats(states: dict[UUID, TaskState]) -> dict[str, Any]:
    def grouped(by: str) -> dict[str, dict[str, int]]:
        groups: dict[str, Counter[str]] = {}
        for state in states.values():
            groups.setdefault(getattr(state, by), Counter())[state.status] += 1
        return {name: dict(counts) for name, counts in groups.items()}

    by_status = Counter(state.status for state in states.values())
    return {
        "total": len(states),
        "by_status": dict.fromkeys(STATUSES, 0) | dict(by_status),
        "by_kind": grouped("kind"),
        "by_queue": grouped("queue"),
    }


async def _at(api: httpx.AsyncClient, when: str) -> dict[str, Any]:
    response = await api.get("/stats", params={"as_of": when})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert response.headers["x-position"] == found["position"] == found["head"]
    assert found["lag"] == 0
    return found


async def _check(api: httpx.AsyncClient, events: list[RecordedEvent], tag: str) -> None:
    for position, wanted in enumerate(_expected(events)):
        found = await _at(api, f"{position}.{tag}")
        assert {name: found[name] for name in wanted} == wanted, position


def _kept(dsn: str) -> list[int]:
    with connect_sync(dsn, name="test") as connection:
        rows = connection.execute(
            "select position from taskledger.kept_counts order by position"
        ).fetchall()
    return [row[0] for row in rows]


def _keep(dsn: str) -> None:
    with connect_sync(dsn, name="test") as connection:
        generation = live(connection)
        assert generation is not None
        while keep(connection, generation, every=EVERY):
            continue
        while (point := next_gap(connection, generation, EventMapper(), every=EVERY)) is not None:
            put(connection, generation, point)


async def test_at_every_position_without_kept_counts(service: Service, api: httpx.AsyncClient) -> None:
    events = await _history(service)
    project(service.dsn)
    await _check(api, events, await service.log.tag())
    now_found = (await api.get("/stats")).json()
    then = await _at(api, now_found["position"])
    assert then == now_found


async def test_at_every_position_from_the_nearest_kept_counts(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than the gap between them is ever looked at; filled backwards, down to the beginning."""
    monkeypatch.setattr("query_side.past_stats.MOST_EVENTS", EVERY)
    events = await _history(service)
    project(service.dsn)
    _keep(service.dsn)
    kept = _kept(service.dsn)
    assert kept[-1] == events[-1].id
    assert all(high - low < 2 * EVERY for low, high in zip([0, *kept], kept, strict=False))
    await _check(api, events, await service.log.tag())


async def test_kept_while_the_projector_goes_on(service: Service) -> None:
    """From the counters themselves, whatever batches they were counted in; `verify` agrees."""
    events = await _history(service)
    with connect_sync(service.dsn, name="test") as connection:
        follower = Follower(connection, EventMapper(), ensure_live(connection))
        for upto in range(3, events[-1].id + 3, 3):
            follower.step(upto=upto)
            generation = live(connection)
            assert generation is not None
            keep(connection, generation, every=EVERY)
    assert len(_kept(service.dsn)) >= events[-1].id // 9
    assert inspect(service.dsn).differences == []
    execute(
        service.dsn,
        'update taskledger.kept_counts set counts = \'[["default", "q0", "k0", "queued", 77]]\''
        " where position = (select max(position) from taskledger.kept_counts)",
    )
    (difference,) = inspect(service.dsn).differences
    assert difference == f"kept counts at position {_kept(service.dsn)[-1]} are not what the log gives"


async def test_out_of_reach_until_counts_are_kept(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query_side.past_stats.MOST_EVENTS", EVERY)
    events = await _history(service)
    project(service.dsn)
    middle = f"{events[-1].id // 2}.{await service.log.tag()}"
    response = await api.get("/stats", params={"as_of": middle})
    assert (response.status_code, response.json()["code"]) == (422, "as_of_out_of_reach")
    keeper = Keeper(service.dsn, every=EVERY)
    keeper.start()

    async def answered() -> bool:
        return (await api.get("/stats", params={"as_of": middle})).status_code == 200

    try:
        await eventually(answered, "the keeper to fill the gaps", within=40)
    finally:
        keeper.stop(20)


async def test_a_rebuilt_generation_keeps_its_own(service: Service, api: httpx.AsyncClient) -> None:
    events = await _history(service)
    project(service.dsn)
    _keep(service.dsn)
    kept = _kept(service.dsn)
    rebuild(service.dsn)
    drop_retired(service.dsn)
    assert _kept(service.dsn) == []
    _keep(service.dsn)
    assert _kept(service.dsn) == kept
    await _check(api, events, await service.log.tag())


async def test_rates_are_those_of_the_minutes_before(service: Service, api: httpx.AsyncClient) -> None:
    events = await _history(service)
    parts = (len(events) // 3, 2 * len(events) // 3)
    for upto, minutes in zip(parts, (50, 3), strict=True):
        execute(
            service.dsn,
            "update taskledger.task_events set recorded_at = recorded_at - make_interval(mins => %s)"
            " where notification_id <= %s and recorded_at > now() - interval '1 minute'",
            minutes,
            upto,
        )
    execute(service.dsn, "update taskledger.log_identity set created_at = now() - interval '2 hours'")
    project(service.dsn)
    moved = await service.log.read_after(0, limit=10_000)
    for when in (
        moved[parts[0]].recorded_at,
        moved[-1].recorded_at,
        moved[-1].recorded_at - timedelta(minutes=2),
    ):
        found = (await _at(api, when.isoformat()))["rates"]
        assert found == {f"{minutes}m": _rates(moved, when, minutes) for minutes in (1, 5, 60)}


def _rates(events: list[RecordedEvent], when: datetime, minutes: int) -> dict[str, float]:
    end = when.replace(second=0, microsecond=0)
    counted = Counter(
        ACTIVITIES[event.topic]
        for event in events
        if event.topic in ACTIVITIES and end - timedelta(minutes=minutes) <= event.recorded_at < end
    )
    return {name: round(counted[name] / (60 * minutes), 3) for name in ACTIVITIES.values()}
