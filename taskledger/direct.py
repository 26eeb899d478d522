"""The busiest routes, straight to their endpoints.

FastAPI finds a route, solves its dependencies and wraps it for errors in more time than all else that such
a request takes, the database included. The same endpoints are routes of FastAPI as well, for the document
and for whoever mounts the application elsewhere: here is no second way to answer, only a shorter one.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from events.errors import TaskledgerError
from taskledger.http import problem_of, problem_of_http

Endpoint = Callable[[Request], Awaitable[Response]]


class DirectMiddleware:
    """`routes` by method and whole path. Add it before `taskledger.http.install()`, within whose
    middleware it must lie."""

    def __init__(self, app: ASGIApp, *, routes: Mapping[tuple[str, str], Endpoint]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await endpoint(Request(scope, receive))
        except TaskledgerError as error:
            response = problem_of(error)
        except HTTPException as error:
            response = problem_of_http(error)
        await response(scope, receive, send)
