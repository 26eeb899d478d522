"""What both APIs tell those who operate them: health, metrics, and a page that describes the API."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from taskledger.docs_page import render_docs
from taskledger.http import is_stopping, json_response, problem_response
from taskledger.metrics import exposition


def add_health(
    app: FastAPI,
    missing: Callable[[], Awaitable[Sequence[str]]],
    degraded: Callable[[], Awaitable[Sequence[str]]] | None = None,
) -> None:
    """`missing` answers, within a second or so, what the process cannot work without right now, one
    line each; `degraded`, what part of it does not work meanwhile, told by a process that is ready.
    Liveness never asks anybody: a restart would not bring a database back."""

    async def live() -> Response:
        return json_response({"status": "live"}, headers={"Cache-Control": "no-store"})

    async def ready() -> Response:
        if is_stopping(app):
            return problem_response(503, "not_ready", "the process is stopping")
        lines = await missing()
        if lines:
            return problem_response(503, "not_ready", "; ".join(lines))
        state: dict[str, Any] = {"status": "ready"}
        if degraded is not None:
            state["degraded"] = list(await degraded())
        return json_response(state, headers={"Cache-Control": "no-store"})

    app.add_api_route("/health/live", live, methods=["GET"], tags=["health"], summary="Liveness")
    app.add_api_route("/health/ready", ready, methods=["GET"], tags=["health"], summary="Readiness")


def add_metrics(app: FastAPI) -> None:
    """`/metrics`, for Prometheus; not part of the API that `/openapi.json` describes."""

    async def metrics(request: Request) -> Response:
        body, media_type = exposition(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})

    app.add_api_route("/metrics", metrics, methods=["GET"], include_in_schema=False)


def add_docs(app: FastAPI) -> None:
    """`/docs`, one page that loads nothing. The app must be made with docs_url and redoc_url None."""

    async def docs() -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        page = render_docs(app.openapi())
        return Response(page, 200, {"Content-Security-Policy": policy}, "text/html; charset=utf-8")

    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
