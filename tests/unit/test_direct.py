"""The short way to an endpoint answers as the long one does."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from events.errors import Overloaded, TaskledgerError
from taskledger.direct import add_direct
from taskledger.http import install, json_response

ERRORS: dict[str, TaskledgerError | HTTPException | RuntimeError] = {
    "ours": Overloaded("later"),
    "too-large": HTTPException(413, headers={"Connection": "close"}),
    "defect": RuntimeError("not to be told"),
}


async def echo(request: Request) -> Response:
    raw = await request.body()
    if (name := raw.decode()) in ERRORS:
        raise ERRORS[name]
    return json_response({"said": name}, status=201, headers={"Location": "/there"})


def _app(routes: dict[tuple[str, str], Callable[[Request], Awaitable[Response]]]) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None)
    add_direct(app, install(app), routes)
    app.add_api_route("/echo", echo, methods=["POST"], response_model=None)
    return app


async def _ask(app: FastAPI, method: str, path: str, said: str) -> tuple[int, dict[str, str], Any]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.request(method, path, content=said, headers={"X-Request-ID": "r1"})
        return answer.status_code, dict(answer.headers), answer.json()


@pytest.mark.parametrize("said", ["hello", *ERRORS])
async def test_both_ways_give_the_same_answer(said: str) -> None:
    direct = await _ask(_app({("POST", "/echo"): echo}), "POST", "/echo", said)
    routed = await _ask(_app({}), "POST", "/echo", said)
    assert direct == routed
    assert direct[0] == {"hello": 201, "ours": 429, "too-large": 413, "defect": 500}[said]


@pytest.mark.parametrize(("method", "path"), [("GET", "/echo"), ("POST", "/echo/"), ("POST", "/other")])
async def test_everything_else_is_left_to_the_framework(method: str, path: str) -> None:
    async def unexpected(_: Request) -> Response:
        raise AssertionError("this is not the route that was asked for")

    status, _, _ = await _ask(_app({("POST", "/echo"): unexpected}), method, path, "")
    assert status == (405 if path == "/echo" else 404)
