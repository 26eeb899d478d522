"""What is malformed, ambiguous or foreign is refused with a 4xx and a reason; never a 5xx, never echoed."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from events.migrate import migrate
from tests.integration.projection import execute, project
from tests.integration.query import query_api
from tests.support import Service, eventually

CANARY = "canary7391"


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    project(dsn)
    async with query_api(dsn) as client:
        yield client


def _is_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    problem: dict[str, Any] = response.json()
    asked = str(response.request.url)[:120]
    assert (response.status_code, problem["code"]) == (status, code), f"{asked}: {response.text}"
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.keys() >= {"type", "title", "status", "code", "detail", "request_id"}
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert CANARY not in response.text
    return problem


NO_TASK = "01a20a18-fe82-75a1-a7d6-b07f9dd2cad5"
BAD: list[tuple[str, int, str]] = [
    ("/tasks?limit=0", 422, "invalid_request"),
    ("/tasks?limit=201", 422, "invalid_request"),
    ("/tasks?limit=-1", 422, "invalid_request"),
    ("/tasks?limit=5.0", 422, "invalid_request"),
    ("/tasks?limit=%205", 422, "invalid_request"),
    ("/tasks?limit=1_0", 422, "invalid_request"),
    ("/tasks?limit=٣", 422, "invalid_request"),
    ("/tasks?limit=", 422, "invalid_request"),
    (f"/tasks?limit={'9' * 5000}", 422, "invalid_request"),
    (f"/tasks?limit={CANARY}", 422, "invalid_request"),
    ("/tasks?limit=1&limit=2", 422, "invalid_request"),
    (f"/tasks?status={CANARY}", 422, "invalid_request"),
    ("/tasks?status=", 422, "invalid_request"),
    ("/tasks?status=queued&status=dead", 422, "invalid_request"),
    ("/tasks?kind=UPPER", 422, "invalid_request"),
    (f"/tasks?kind={'a' * 65}", 422, "invalid_request"),
    ("/tasks?kind=a%0Ab", 422, "invalid_request"),
    ("/tasks?kind=a%0A", 422, "invalid_request"),
    ("/tasks?queue=%27%3B--", 422, "invalid_request"),
    ("/tasks?tag=", 422, "invalid_request"),
    ("/tasks?" + "&".join(f"tag=t{n}" for n in range(17)), 422, "invalid_request"),
    ("/tasks?offset=3", 422, "invalid_request"),
    ("/tasks?Status=queued", 422, "invalid_request"),
    ("/tasks?tags=a", 422, "invalid_request"),
    ("/tasks?kind=a%00", 422, "invalid_request"),
    ("/tasks?kind=%ff", 422, "invalid_request"),
    ("/tasks?kind=%ed%a0%80", 422, "invalid_request"),
    ("/tasks?created_after=2026-01-01", 422, "invalid_request"),
    ("/tasks?created_after=2026-01-01T00:00:00", 422, "invalid_request"),
    ("/tasks?created_after=2026-01-01T00:00:00+00:00", 422, "invalid_request"),  # the plus is a space
    ("/tasks?created_after=2026-02-30T00:00:00Z", 422, "invalid_request"),
    ("/tasks?created_after=0001-01-01T00:00:00%2B01:00", 422, "invalid_request"),
    ("/tasks?created_after=20260101T000000Z", 422, "invalid_request"),
    ("/tasks?created_after=1767225600", 422, "invalid_request"),
    (f"/tasks?cursor={CANARY}", 400, "malformed_cursor"),
    (f"/tasks?cursor={'a' * 201}", 422, "invalid_request"),
    ("/dead-letters?status=dead", 422, "invalid_request"),
    ("/stats?x=1", 422, "invalid_request"),
    ("/queues?limit=1", 422, "invalid_request"),
    ("/tasks/", 404, "not_found"),
    ("/tasks/1", 404, "task_not_found"),
    (f"/tasks/{CANARY}", 404, "task_not_found"),
    (f"/tasks/{NO_TASK}", 404, "task_not_found"),
    (f"/tasks/{NO_TASK.upper()}", 404, "task_not_found"),
    (f"/tasks/{{{NO_TASK}}}", 404, "task_not_found"),
    (f"/tasks/{NO_TASK.replace('-', '')}", 404, "task_not_found"),
    (f"/tasks/urn:uuid:{NO_TASK}", 404, "task_not_found"),
    ("/tasks/%2e%2e%2fqueues", 404, "not_found"),
    ("/tasks/%00", 422, "invalid_request"),
    (f"/tasks/{NO_TASK}/events", 404, "task_not_found"),
    (f"/tasks/{NO_TASK}/events?limit=1", 422, "invalid_request"),
    (f"/tasks/{NO_TASK}/nothing", 404, "not_found"),
    (f"/tasks/{NO_TASK}?wait_seconds=61", 422, "invalid_request"),
    (f"/tasks/{NO_TASK}?wait_seconds=-1", 422, "invalid_request"),
    (f"/tasks/{NO_TASK}?wait_seconds=nan", 422, "invalid_request"),
    (f"/tasks/{NO_TASK}?wait_seconds=1e1", 422, "invalid_request"),
    (f"/tasks/{NO_TASK}?wait_seconds=inf", 422, "invalid_request"),
    (f"/tasks/{NO_TASK}?min_position={CANARY}", 400, "malformed_position"),
    (f"/tasks/{NO_TASK}?min_position=1", 400, "malformed_position"),
    (f"/tasks/{NO_TASK}?min_position=-1.aaaaaaaa", 400, "malformed_position"),
    (f"/tasks/{NO_TASK}?min_position=01.aaaaaaaa", 400, "malformed_position"),
    (f"/tasks/{NO_TASK}?min_position={2**63}.aaaaaaaa", 400, "malformed_position"),
    (f"/tasks/{NO_TASK}?min_position=0.another1", 409, "log_rewound"),
    (f"/tasks/{NO_TASK}?min_position=9999.another1", 409, "log_rewound"),
    (f"/tasks/{NO_TASK}?as_of={CANARY}", 400, "malformed_position"),
    (f"/tasks/{NO_TASK}?as_of=2026-13-01T00:00:00Z", 422, "invalid_request"),
    (f"/tasks/{NO_TASK}?as_of=0001-01-01T00:00:00Z", 422, "as_of_out_of_reach"),
    (f"/tasks/{NO_TASK}?as_of=9999-12-31T23:59:59Z", 422, "invalid_request"),
    (f"/tasks/{NO_TASK}?as_of=0.another1", 409, "log_rewound"),
    (f"/tasks/{NO_TASK}?as_of=9999.another1", 409, "log_rewound"),
    (f"/tasks/{NO_TASK}?as_of=2026-01-01T00:00:00Z&wait_seconds=1", 422, "invalid_request"),
    ("/events?after=0.another1", 409, "log_rewound"),
    (f"/events?after={CANARY}", 400, "malformed_position"),
    ("/events?after=", 400, "malformed_position"),
    ("/events?after=START", 400, "malformed_position"),
    ("/nothing", 404, "not_found"),
    ("/redoc", 404, "not_found"),
]


async def test_bad_input(api: httpx.AsyncClient) -> None:
    """One database for all: none of them changes anything."""
    for path, status, code in BAD:
        _is_problem(await api.get(path), status, code)


async def test_what_is_wrong_is_named_by_place(api: httpx.AsyncClient) -> None:
    response = await api.get("/tasks?limit=x&status=y&created_after=z")
    problem = _is_problem(response, 422, "invalid_request")
    assert [e["location"] for e in problem["errors"]] == [
        "/query/status",
        "/query/created_after",
        "/query/limit",
    ]
    assert _is_problem(await api.get("/tasks?wrong=1"), 422, "invalid_request")["errors"] == [
        {"location": "/query/wrong", "message": "Unknown parameter"}
    ]
    past = await api.get(f"/tasks/{NO_TASK}?as_of=2026-13-01T00:00:00Z")
    assert past.json()["errors"][0]["location"] == "/query/as_of"


async def test_other_methods_are_refused(api: httpx.AsyncClient) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS"):
        response = await api.request(method, "/tasks", headers={"X-HTTP-Method-Override": "GET"})
        _is_problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "GET"


async def test_request_ids_are_taken_over_only_when_harmless(api: httpx.AsyncClient) -> None:
    kept = await api.get("/tasks", headers={"X-Request-ID": "abc-1.2_3"})
    assert kept.headers["x-request-id"] == "abc-1.2_3"
    for bad in (b"", b"a b", b"x" * 65, b"a;b", "ü".encode()):
        response = await api.get("/nothing", headers={b"X-Request-ID": bad})
        assert len(_is_problem(response, 404, "not_found")["request_id"]) == 16


async def test_a_position_of_the_log_before_a_restore_is_told(
    service: Service, api: httpx.AsyncClient
) -> None:
    task = await service.create()
    project(service.dsn)
    token = (await api.get(f"/tasks/{task.id}")).json()["position"]
    execute(service.dsn, "update taskledger.log_identity set tag = 'restored'")
    for path in (f"/tasks/{task.id}?min_position={token}", f"/tasks/{task.id}?as_of={token}"):
        _is_problem(await api.get(path), 409, "log_rewound")
    _is_problem(await api.get(f"/events?after={token}"), 409, "log_rewound")


async def test_a_feed_position_beyond_the_log(service: Service, api: httpx.AsyncClient) -> None:
    response = await api.get(f"/events?after=7.{await service.log.tag()}")
    _is_problem(response, 503, "read_model_lagging")


async def test_without_a_database_it_lives_and_says_what_is_missing(tmp_path: Path) -> None:
    async with query_api(f"host={tmp_path} port=1 dbname=x user=x connect_timeout=1") as api:
        assert (await api.get("/health/live")).status_code == 200
        ready = _is_problem(await api.get("/health/ready"), 503, "not_ready")
        assert ready["detail"].startswith("PostgreSQL: ")


async def test_a_database_that_is_migrated_and_projected_later_is_picked_up(empty_dsn: str) -> None:
    async with query_api(empty_dsn) as api:
        unready = _is_problem(await api.get("/health/ready"), 503, "not_ready")
        assert "migrate" in unready["detail"]
        for path in ("/tasks", f"/tasks/{NO_TASK}/events", "/events", "/stats"):
            _is_problem(await api.get(path), 503, "schema_not_ready")
        migrate(empty_dsn)
        _is_problem(await api.get("/tasks"), 503, "read_model_lagging")
        project(empty_dsn)
        assert (await api.get("/tasks")).json() == {"tasks": [], "next_cursor": None}


async def test_after_the_server_dropped_every_connection_reads_go_on(
    service: Service, api: httpx.AsyncClient
) -> None:
    task = await service.create()
    project(service.dsn)
    for _ in range(3):
        execute(
            service.dsn,
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and application_name like 'taskledger-query%%'",
        )
        assert (await api.get(f"/tasks/{task.id}")).status_code == 200


async def test_read_tables_of_another_release_are_told(service: Service, api: httpx.AsyncClient) -> None:
    execute(service.dsn, "alter table taskledger_read_g1.tasks drop column worker")

    async def told() -> bool:
        response = await api.get("/tasks")
        return bool(response.json().get("code") == "schema_not_ready")

    await eventually(told)
    unready = _is_problem(await api.get("/health/ready"), 503, "not_ready")
    assert "the read tables are another release's: run `taskledger rebuild`" in str(unready)
