"""The plumbing both APIs stand on: errors as problems, and nothing that tells more than it should."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from events.errors import (
    ConcurrencyConflict,
    LogRewound,
    Overloaded,
    SchemaNotReady,
    StoreUnavailable,
    TaskledgerError,
    UndecodableEvent,
)
from taskledger.http import (
    PROBLEMS,
    install,
    json_response,
    on_stopping,
    pointer,
    request_id,
)
from taskledger.operator_routes import add_docs, add_health, add_metrics

SECRET = "hunter2"


@dataclass(frozen=True)
class Violation:
    location: str
    message: str


class ViolatedError(TaskledgerError):
    code = "invalid_request"
    status = 422
    violations = (Violation("/tasks/0/kind", "Unknown kind"), "not one")


class Thing(BaseModel, extra="forbid"):
    name: str
    numbers: list[int]


ERRORS: dict[str, Exception] = {
    "violated": ViolatedError("no"),
    "rewound": LogRewound("other log"),
    "conflict": ConcurrencyConflict("try again"),
    "overloaded": Overloaded("later"),
    "unavailable": StoreUnavailable("gone"),
    "schema": SchemaNotReady("migrate"),
    "undecodable": UndecodableEvent("at 7"),
    "unforeseen": RuntimeError(SECRET),
    "teapot": HTTPException(418, SECRET, {"X-Tea": "green"}),
    "disconnect": ClientDisconnect(),
}


def _app() -> FastAPI:
    app = FastAPI(title="t", docs_url=None, redoc_url=None, responses=PROBLEMS)
    install(app)

    @app.get("/raise/{name}")
    async def fail(name: str) -> None:
        raise ERRORS[name]

    @app.post("/things")
    async def things(thing: Annotated[Thing, Body()]) -> Any:
        return json_response({"id": request_id(), "nan": float("nan"), "thing": thing.name})

    async def missing() -> Sequence[str]:
        return ["PostgreSQL: gone", "Redis: gone"]

    add_health(app, missing)
    add_metrics(app)
    add_docs(app)
    return app


@pytest.fixture
async def api() -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client


@pytest.mark.parametrize(
    ("name", "status", "code", "retry_after"),
    [
        ("violated", 422, "invalid_request", None),
        ("rewound", 409, "log_rewound", None),
        ("conflict", 409, "wrong_state", None),
        ("overloaded", 429, "overloaded", "1"),
        ("unavailable", 503, "store_unavailable", "1"),
        ("schema", 503, "schema_not_ready", "1"),
        ("undecodable", 500, "undecodable_event", None),
        ("unforeseen", 500, "internal_error", None),
        ("teapot", 418, "im_a_teapot", None),
    ],
)
async def test_every_error_is_a_problem(
    api: httpx.AsyncClient, name: str, status: int, code: str, retry_after: str | None
) -> None:
    response = await api.get(f"/raise/{name}", headers={"X-Request-ID": "r1"})
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers.get("retry-after") == retry_after
    assert problem["request_id"] == response.headers["x-request-id"] == "r1"
    assert problem["type"] == f"urn:taskledger:problem:{code}"
    assert SECRET not in response.text


async def test_violations_and_headers_of_errors_are_kept(api: httpx.AsyncClient) -> None:
    problem = (await api.get("/raise/violated")).json()
    assert problem["errors"] == [{"location": "/tasks/0/kind", "message": "Unknown kind"}]
    assert (await api.get("/raise/teapot")).headers["x-tea"] == "green"


async def test_a_client_that_went_away_is_no_error(api: httpx.AsyncClient) -> None:
    with pytest.raises(AssertionError):  # the transport's, since nothing was sent to nobody
        await api.get("/raise/disconnect")


async def test_a_body_is_never_echoed(api: httpx.AsyncClient) -> None:
    body = {"name": [SECRET], "numbers": [SECRET] * 300, SECRET * 20: 1}
    response = await api.post("/things", json=body)
    problem = response.json()
    assert (response.status_code, problem["code"], len(problem["errors"])) == (422, "invalid_request", 100)
    assert [e["location"] for e in problem["errors"][:2]] == ["/name", "/numbers/0"]
    assert SECRET not in response.text
    malformed = await api.post("/things", content=b"{", headers={"Content-Type": "application/json"})
    assert (malformed.status_code, malformed.json()["code"]) == (400, "malformed_json")


async def test_numbers_that_json_lacks_become_null(api: httpx.AsyncClient) -> None:
    response = await api.post("/things", json={"name": "n", "numbers": []}, headers={"X-Request-ID": "r2"})
    assert response.json() == {"id": "r2", "nan": None, "thing": "n"}


async def test_readiness_says_all_that_is_missing(api: httpx.AsyncClient) -> None:
    response = await api.get("/health/ready")
    assert (response.status_code, response.json()["detail"]) == (503, "PostgreSQL: gone; Redis: gone")


async def test_documents_describe_problems_as_they_are(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    responses = document["paths"]["/things"]["post"]["responses"]
    assert list(responses["default"]["content"]) == ["application/problem+json"]
    assert "422" not in responses
    assert "HTTPValidationError" not in document["components"]["schemas"]
    page = (await api.get("/docs")).text
    assert '<a href="#Thing">' in page
    assert 'id="Thing"' in page


def test_pointers_are_escaped_and_cut() -> None:
    assert pointer(("body", "a/b", "c~d", 3)) == "/a~1b/c~0d/3"
    assert pointer(("query", "x" * 1000)) == f"/query/{'x' * 64}"
    assert pointer(("body",)) == ""


def test_callbacks_for_the_stop_gather() -> None:
    app = FastAPI()
    called: list[int] = []
    on_stopping(app, lambda: called.append(1))
    on_stopping(app, lambda: called.append(2))
    for callback in app.state.on_stopping:
        callback()
    assert called == [1, 2]
