"""Lists page by keyset, whatever happens between the pages; cursors cannot be made up."""

import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from command_side.commands import CancelTask
from query_side.cursor import CursorSigner, Place
from query_side.errors import MalformedCursor
from tests.integration.projection import execute, many_histories, project, table
from tests.integration.query import NO_HANDLERS, query_api
from tests.support import Service, now


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with query_api(dsn) as client:
        yield client


async def _page(api: httpx.AsyncClient, path: str = "/tasks", **parameters: Any) -> Any:
    response = await api.get(path, params=parameters)
    assert response.status_code == 200, response.text
    return response.json()


async def _all(api: httpx.AsyncClient, path: str = "/tasks", **parameters: Any) -> list[Any]:
    found: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = await _page(api, path, **parameters, **cursor)
        found += page["tasks"]
        if page["next_cursor"] is None:
            return found
        assert page["tasks"]
        cursor = {"cursor": page["next_cursor"]}


async def test_pages_hold_every_task_once_newest_first(service: Service, api: httpx.AsyncClient) -> None:
    ids = [(await service.create()).id for _ in range(11)]
    project(service.dsn)
    for limit in (1, 4, 10, 11, 200):
        found = await _all(api, limit=limit)
        assert [t["id"] for t in found] == [str(i) for i in reversed(ids)]


FILTERS: list[dict[str, Any]] = [
    {"status": "queued"},
    {"status": "completed"},
    {"kind": "k1"},
    {"queue": "q0"},
    {"tag": ["t0"]},
    {"tag": ["t0", "t2"]},
    {"tag": ["t2", "t0", "t0"]},
    {"status": "cancelled", "kind": "k2", "queue": "q1", "tag": ["t1"]},
    {"kind": "unheard_of"},
]


async def test_filters(service: Service, api: httpx.AsyncClient) -> None:
    await many_histories(service)
    project(service.dsn)
    rows = sorted(table(service.dsn), key=lambda r: r["created_position"], reverse=True)
    for filters in FILTERS:
        names = [name for name in ("status", "kind", "queue") if name in filters]
        expected = [
            str(row["id"])
            for row in rows
            if set(filters.get("tag", ())) <= set(row["tags"])
            and all(row[name] == filters[name] for name in names)
        ]
        assert [t["id"] for t in await _all(api, limit=3, **filters)] == expected, filters


async def test_bounds_of_time_are_inclusive_and_exclusive(service: Service, api: httpx.AsyncClient) -> None:
    first, second, third = [await service.create() for _ in range(3)]
    project(service.dsn)
    at = second.created_at.isoformat()
    assert [t["id"] for t in await _all(api, created_after=at)] == [str(third.id), str(second.id)]
    assert [t["id"] for t in await _all(api, created_before=at)] == [str(first.id)]
    both = await _all(api, created_after=at, created_before=third.created_at.isoformat())
    assert [t["id"] for t in both] == [str(second.id)]
    assert await _all(api, created_after=(now() + timedelta(hours=1)).isoformat()) == []


async def test_tasks_created_or_changed_between_pages_are_neither_doubled_nor_missed(
    service: Service, api: httpx.AsyncClient
) -> None:
    ids = [(await service.create()).id for _ in range(6)]
    project(service.dsn)
    first = await _page(api, limit=3)
    await service.create()
    for task_id in ids:
        await service.execute(task_id, CancelTask())
    project(service.dsn)
    second = await _page(api, limit=3, cursor=first["next_cursor"])

    found = [t["id"] for t in first["tasks"] + second["tasks"]]
    assert found == [str(i) for i in reversed(ids)]
    assert second["next_cursor"] is None


async def test_tasks_of_one_moment_page_by_position(service: Service, api: httpx.AsyncClient) -> None:
    for _ in range(5):
        await service.create()
    project(service.dsn)
    execute(service.dsn, "update taskledger_read_g1.tasks set created_at = '2026-01-01Z'")
    assert len({t["id"] for t in await _all(api, limit=2)}) == 5


async def test_large_tasks_end_a_page(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query_side.tasks.PAGE_BYTES", 2500)
    ids = [(await service.create(payload={"text": "x" * 1000})).id for _ in range(7)]
    project(service.dsn)
    assert len((await _page(api))["tasks"]) == 3
    assert [t["id"] for t in await _all(api)] == [str(i) for i in reversed(ids)]


async def test_a_cursor_is_of_use_for_its_own_list_and_filters_only(
    service: Service, api: httpx.AsyncClient
) -> None:
    for _ in range(3):
        await service.create(kind="k", tags=("a", "b"))
    project(service.dsn)
    cursor = (await _page(api, limit=1, kind="k"))["next_cursor"]
    assert len((await _page(api, limit=200, kind="k", cursor=cursor))["tasks"]) == 2

    microseconds, position, signature = cursor.split(".")
    older = f"{microseconds}.{int(position) + 1}.{signature}"
    foreign: list[tuple[str, dict[str, Any]]] = [
        ("/tasks", {"cursor": cursor}),
        ("/tasks", {"cursor": cursor, "kind": "other"}),
        ("/tasks", {"cursor": cursor, "kind": "k", "tag": "a"}),
        ("/dead-letters", {"cursor": cursor, "kind": "k"}),
        *(
            ("/tasks", {"kind": "k", "cursor": forged})
            for forged in (
                older,
                cursor[:-1],
                cursor + "A",
                cursor.upper(),
                "0" + cursor,
                "",
                "x",
                "٣.٣." + signature,
                base64.b64encode(b"{}").decode(),
                CursorSigner(b"guess").sign(Place(now(), 1), {"list": "tasks", "kind": "k"}),
            )
        ),
    ]
    for path, parameters in foreign:
        response = await api.get(path, params=parameters)
        assert (response.status_code, response.json()["code"]) == (400, "malformed_cursor"), parameters

    execute(service.dsn, "update taskledger.log_identity set tag = 'restored'")
    assert (await api.get("/tasks", params={"kind": "k", "cursor": cursor})).status_code == 400


async def test_tags_bind_a_cursor_in_any_order(service: Service, api: httpx.AsyncClient) -> None:
    for _ in range(2):
        await service.create(tags=("a", "b"))
    project(service.dsn)
    cursor = (await _page(api, limit=1, tag=["a", "b"]))["next_cursor"]
    assert len((await _page(api, tag=["b", "a"], cursor=cursor))["tasks"]) == 1


async def test_processes_share_a_secret(service: Service) -> None:
    for _ in range(2):
        await service.create()
    project(service.dsn)
    secret: dict[str, Any] = {"query_api": {"cursor_secret": "s3cret"}}
    async with (
        query_api(service.dsn, NO_HANDLERS, **secret) as one,
        query_api(service.dsn, NO_HANDLERS, **secret) as two,
    ):
        cursor = (await _page(one, limit=1))["next_cursor"]
        assert len((await _page(two, cursor=cursor))["tasks"]) == 1
    async with query_api(service.dsn) as other:
        assert (await other.get("/tasks", params={"cursor": cursor})).status_code == 400


def test_a_signed_place_reads_back() -> None:
    signer = CursorSigner(b"secret")
    place = Place(now(), 2**62)
    assert signer.read(signer.sign(place, {"list": "x"}), {"list": "x"}) == place
    with pytest.raises(MalformedCursor):
        signer.read(signer.sign(place, {"list": "x"}), {"list": "y"})
