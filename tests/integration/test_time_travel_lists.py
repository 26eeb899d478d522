"""GET /tasks?as_of= is the list as it was: held against a fresh fold of the log, at every position."""

import json
from collections.abc import AsyncIterator, Iterator
from itertools import cycle
from typing import Any
from uuid import UUID

import httpx
import pytest

from command_side.commands import CancelTask, StartTask
from events.ids import as_uuid
from events.task_events import TaskEvent
from events.task_state import TaskState, evolve
from query_side.shapes import task_of_state
from taskledger.http import json_response
from tests.integration.projection import append_raw, execute, many_histories, project
from tests.integration.query import query_api
from tests.support import Service


@pytest.fixture
async def api(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    for cls in ("moments.Moments", "consistency.Consistency"):
        monkeypatch.setattr(f"query_side.{cls}.__init__.__kwdefaults__", {"budget_seconds": 0.3})
    async with query_api(dsn) as client:
        yield client


async def _all(api: httpx.AsyncClient, **parameters: Any) -> tuple[list[Any], int]:
    """The tasks of all pages, and how many pages there were."""
    found: list[Any] = []
    cursor: dict[str, str] = {}
    for number in range(1, 1_000):
        response = await api.get("/tasks", params={**parameters, **cursor})
        assert response.status_code == 200, response.text
        page = response.json()
        found += page["tasks"]
        if page["next_cursor"] is None:
            return found, number
        cursor = {"cursor": page["next_cursor"]}
    raise AssertionError("the list has no end")


async def _folds(service: Service) -> Iterator[tuple[int, dict[UUID, TaskState]]]:
    """Each position, and all tasks as of it, in the order of their creation."""
    states: dict[UUID, TaskState] = {}
    folded: list[tuple[int, dict[UUID, TaskState]]] = [(0, {})]
    for event in await service.log.read_after(0, limit=10_000):
        record = service.mapper.decode(event)
        if isinstance(record, TaskEvent):
            task = as_uuid(event.originator_id)
            states[task] = evolve(states.get(task), record, at=event.recorded_at, position=event.id)
        folded.append((event.id, dict(states)))
    return iter(folded)


def _shown(state: TaskState, tag: str) -> Any:
    return json.loads(bytes(json_response(task_of_state(state, tag)).body))


FILTERS: list[dict[str, Any]] = [
    {},
    {"status": "queued"},
    {"status": "running"},
    {"status": "dead", "queue": "q0"},
    {"kind": "k1"},
    {"tag": ["t0"], "status": "retrying"},
    {"status": "completed", "kind": "k2"},
    {"queue": "q1", "tag": ["t0", "t1"]},
    {"status": "cancelled"},
]


def _fits(state: TaskState, filters: dict[str, Any]) -> bool:
    names = [name for name in ("status", "kind", "queue") if name in filters]
    return set(filters.get("tag", ())) <= set(state.tags) and all(
        getattr(state, name) == filters[name] for name in names
    )


@pytest.mark.parametrize("bounds", [(5_000, 1_000, 200), (4, 3, 2)], ids=["wide", "narrow"])
async def test_every_list_at_every_position(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, bounds: tuple[int, int, int]
) -> None:
    for name, bound in zip(("LOOKED_AT", "FOLDED", "CHUNK"), bounds, strict=True):
        monkeypatch.setattr(f"query_side.past.{name}", bound)
    await many_histories(service, count=12, seed=bounds[0])
    project(service.dsn)
    tag = await service.log.tag()
    filters = cycle(FILTERS)
    limits = cycle((3, 1, 50, 7))
    for position, states in await _folds(service):
        asked = next(filters)
        expected = [_shown(state, tag) for state in reversed(states.values()) if _fits(state, asked)]
        found, _ = await _all(api, as_of=f"{position}.{tag}", limit=next(limits), **asked)
        assert found == expected, (position, asked)


async def test_a_page_is_bounded_and_short(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query_side.past.LOOKED_AT", 4)
    tasks = [await service.create() for _ in range(10)]
    await service.execute(tasks[0].id, StartTask(holder="h", worker="w"))
    project(service.dsn)
    tag = await service.log.tag()
    found, pages = await _all(api, as_of=f"11.{tag}", status="running")
    assert ([task["id"] for task in found], pages) == ([str(tasks[0].id)], 3)
    assert await _all(api, as_of=f"10.{tag}", status="running") == ([], 3)


async def test_pages_belong_to_one_moment_whatever_happens_between_them(
    service: Service, api: httpx.AsyncClient
) -> None:
    tasks = [await service.create() for _ in range(5)]
    project(service.dsn)
    tag = await service.log.tag()
    when = tasks[-1].created_at.isoformat()
    first = (await api.get("/tasks", params={"as_of": when, "limit": 2})).json()
    for task in tasks:
        await service.execute(task.id, CancelTask())
    await service.create()
    project(service.dsn)
    # The end of the log was all that the time had by then: had more come at it, it would not show.
    execute(
        service.dsn, "update taskledger.task_events set recorded_at = %s where notification_id > 5", when
    )
    rest = await api.get("/tasks", params={"as_of": when, "limit": 50, "cursor": first["next_cursor"]})
    shown = first["tasks"] + rest.json()["tasks"]
    assert [task["id"] for task in shown] == [str(task.id) for task in reversed(tasks)]
    assert {task["status"] for task in shown} == {"queued"}
    assert rest.headers["x-position"] == f"5.{tag}"


async def test_a_cursor_is_of_use_with_its_moment_only(service: Service, api: httpx.AsyncClient) -> None:
    for _ in range(4):
        await service.create()
    project(service.dsn)
    tag = await service.log.tag()
    now_cursor = (await api.get("/tasks", params={"limit": 1})).json()["next_cursor"]
    then: dict[str, Any] = {"as_of": f"3.{tag}", "limit": 1}
    cursor = (await api.get("/tasks", params=then)).json()["next_cursor"]
    assert (await api.get("/tasks", params={**then, "cursor": cursor})).status_code == 200
    wrongs: list[dict[str, Any]] = [
        {"limit": 1, "cursor": cursor},
        {"as_of": f"4.{tag}", "cursor": cursor},
        {**then, "kind": "k", "cursor": cursor},
        {**then, "cursor": now_cursor},
        {**then, "cursor": cursor.replace(".3.", ".4.")},
    ]
    for wrong in wrongs:
        response = await api.get("/tasks", params=wrong)
        assert (response.status_code, response.json()["code"]) == (400, "malformed_cursor"), wrong


async def test_what_cannot_be_told(service: Service, api: httpx.AsyncClient) -> None:
    await service.create()
    await service.create()
    tag = await service.log.tag()
    for path in ("/tasks", "/stats"):
        for when, status, code in (
            ("x", 400, "malformed_position"),
            ("2026-01-01", 422, "invalid_request"),
            ("0001-01-01T00:00:00Z", 422, "as_of_out_of_reach"),
            ("9999-01-01T00:00:00Z", 422, "invalid_request"),
            ("1.another1", 409, "log_rewound"),
            (f"3.{tag}", 503, "read_model_lagging"),  # beyond the log
            (f"2.{tag}", 503, "read_model_lagging"),  # the projector has not begun
        ):
            response = await api.get(path, params={"as_of": when})
            assert (response.status_code, response.json()["code"]) == (status, code), (path, when)


async def test_a_parked_task_is_shown_as_the_read_tables_have_it(
    service: Service, api: httpx.AsyncClient
) -> None:
    task, other = await service.create(), await service.create()
    await append_raw(service, task.id, 2, "TaskTeleported", b"{}")
    await service.execute(other.id, CancelTask())
    execute(
        service.dsn,
        "insert into taskledger.parked_events (projection, position, originator_id, originator_version,"
        " topic, tenant, reason, parked_by)"
        " values ('tasks', 3, %s, 2, 'TaskTeleported', 'default', '', '')",
        task.id,
    )
    project(service.dsn)
    tag = await service.log.tag()
    found, _ = await _all(api, as_of=f"4.{tag}")
    assert [(t["id"], t["status"], t["version"]) for t in found] == [
        (str(other.id), "cancelled", 2),
        (str(task.id), "queued", 1),
    ]
