"""`as_of` one task: what it was at a time or a position, and a clear answer where that cannot be said."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from command_side.commands import CompleteTask, StartTask
from events.ids import new_task_id, queue_id
from events.task_state import TaskState
from tests.integration.projection import append_raw, execute, many_histories, project
from tests.integration.query import query_api
from tests.support import Service, now


@pytest.fixture
async def api(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setattr("query_side.moments.Moments.__init__.__kwdefaults__", {"budget_seconds": 0.3})
    async with query_api(dsn) as client:
        yield client


async def _ask(api: httpx.AsyncClient, task: TaskState, when: Any) -> httpx.Response:
    return await api.get(f"/tasks/{task.id}", params={"as_of": str(when)})


async def _status(api: httpx.AsyncClient, task: TaskState, when: Any) -> str:
    response = await _ask(api, task, when)
    assert response.status_code == 200, response.text
    return str(response.json()["status"])


async def _refused(api: httpx.AsyncClient, task: TaskState, when: Any) -> tuple[int, str]:
    response = await _ask(api, task, when)
    return response.status_code, response.json()["code"]


def _iso(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


async def test_a_task_at_each_of_its_events(service: Service, api: httpx.AsyncClient) -> None:
    task = await service.create(payload={"x": 1})
    other = await service.create()
    await service.execute(task.id, StartTask(holder="h", worker="w"))
    await service.execute(other.id, StartTask(holder="h", worker="w"))
    await service.execute(task.id, CompleteTask(1, {"sum": 3}))
    tag = await service.log.tag()

    by_position = [await _status(api, task, f"{n}.{tag}") for n in range(1, 6)]
    assert by_position == ["queued", "queued", "running", "running", "completed"]
    project(service.dsn)
    whole = (await _ask(api, task, f"5.{tag}")).json()
    assert whole == (await api.get(f"/tasks/{task.id}")).json()


async def test_a_time_is_the_last_event_at_or_before_it(service: Service, api: httpx.AsyncClient) -> None:
    """Held against the log itself, in whatever groups the events were appended."""
    ids = await many_histories(service, count=9)
    events = await service.log.read_after(0, limit=10_000)
    tag = await service.log.tag()
    assert len(events) > 20
    microsecond = timedelta(microseconds=1)
    for at in sorted({e.recorded_at for e in events}):
        for asked in (at - microsecond, at, at + microsecond):
            position = max((e.id for e in events if e.recorded_at <= asked), default=0)
            response = await api.get(f"/tasks/{ids[0]}", params={"as_of": _iso(asked)})
            assert response.status_code == (200 if position >= events[0].id else 404), response.text
            if response.status_code == 200:
                assert response.headers["x-position"] == f"{position}.{tag}"
                again = await api.get(f"/tasks/{ids[0]}", params={"as_of": f"{position}.{tag}"})
                assert again.content == response.content


async def test_before_the_task_was_created(service: Service, api: httpx.AsyncClient) -> None:
    first = await service.create()
    task = await service.create()
    tag = await service.log.tag()
    for early in (f"0.{tag}", f"1.{tag}", _iso(first.created_at)):
        response = await _ask(api, task, early)
        assert (response.status_code, response.json()["code"]) == (404, "task_not_found"), early
        assert f"created at 2.{tag}" in response.json()["detail"]


async def test_an_id_of_no_task(service: Service, api: httpx.AsyncClient) -> None:
    await service.create()
    await service.commands.set_paused("default", paused=True)
    tag = await service.log.tag()
    for unknown in (new_task_id(), queue_id("default", "default")):
        response = await api.get(f"/tasks/{unknown}", params={"as_of": f"2.{tag}"})
        assert (response.status_code, response.json()["detail"]) == (404, "there is no task with this id")


async def test_before_the_log_began_and_after_now(service: Service, api: httpx.AsyncClient) -> None:
    task = await service.create()
    execute(service.dsn, "update taskledger.log_identity set created_at = now()")
    began = task.created_at  # the first event is older than this log's row: it was copied with its past
    assert await _status(api, task, _iso(began)) == "queued"
    early = await _ask(api, task, _iso(began - timedelta(microseconds=1)))
    assert (early.status_code, early.json()["code"]) == (422, "as_of_out_of_reach")
    assert f"{began:%Y-%m-%dT%H:%M:%S}" in early.json()["detail"]

    late = await _ask(api, task, _iso(now() + timedelta(hours=1)))
    assert (late.status_code, late.json()["code"]) == (422, "invalid_request")
    assert late.json()["errors"] == [{"location": "/query/as_of", "message": "The time has not come yet"}]


async def test_an_empty_log_has_begun(service: Service, api: httpx.AsyncClient) -> None:
    tag = await service.log.tag()
    nobody = new_task_id()
    for when in (f"0.{tag}", _iso(now() - timedelta(milliseconds=1))):
        response = await api.get(f"/tasks/{nobody}", params={"as_of": when})
        assert (response.status_code, response.json()["code"]) == (404, "task_not_found")


async def test_a_position_that_the_log_has_not_reached_is_waited_for(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await service.create()
    tag = await service.log.tag()
    response = await _ask(api, task, f"2.{tag}")
    assert (response.status_code, response.json()["code"]) == (503, "read_model_lagging")
    assert response.headers["retry-after"] == "1"

    monkeypatch.setattr("query_side.moments.Moments.__init__.__kwdefaults__", {"budget_seconds": 30.0})
    async with query_api(service.dsn) as patient:  # no projector runs: it is the log that is waited for
        waiting = asyncio.create_task(_status(patient, task, f"2.{tag}"))
        await service.execute(task.id, StartTask(holder="h", worker="w"))
        assert await asyncio.wait_for(waiting, 20) == "running"


async def test_an_event_that_this_release_cannot_apply(service: Service, api: httpx.AsyncClient) -> None:
    task = await service.create()
    await append_raw(service, task.id, 2, "TaskTeleported", b"{}")
    tag = await service.log.tag()
    assert await _status(api, task, f"1.{tag}") == "queued"
    response = await _ask(api, task, f"2.{tag}")
    assert (response.status_code, response.json()["code"]) == (422, "as_of_out_of_reach")
    assert f"2.{tag}" in response.json()["detail"]


async def test_another_log(service: Service, api: httpx.AsyncClient) -> None:
    task = await service.create()
    for token in ("1.another1", "99.another1"):
        assert await _refused(api, task, token) == (409, "log_rewound")
