"""The busiest routes, straight to their endpoints.

FastAPI finds a route, solves its dependencies and wraps it for errors in more time than all else that such
a request takes, the database included. The same endpoints are routes of FastAPI as well, for the document
and for whoever mounts the application elsewhere: here is no second way to answer, only a shorter one.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from events.errors import TaskledgerError
from taskledger.http import Edge, problem_of, problem_of_http

Endpoint = Callable[[Request], Awaitable[Response]]
Routes = Mapping[tuple[str, str], Endpoint]
"""By method and whole path."""


def add_direct(app: FastAPI, edge: Edge, routes: Routes) -> None:
    """Puts the routes before everything of FastAPI's, behind an edge of their own: see http.install()."""
    build = app.build_middleware_stack

    def build_with_direct() -> ASGIApp:
        direct, routed = edge(_Endpoints(routes)), build()

        async def fork(scope: Scope, receive: Receive, send: Send) -> None:
            way = direct if scope["type"] == "http" and _name(scope) in routes else routed
            await way(scope, receive, send)

        return fork

    app.__dict__["build_middleware_stack"] = build_with_direct


class _Endpoints:
    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._routes[_name(scope)](Request(scope, receive))
        except TaskledgerError as error:
            response = problem_of(error)
        except HTTPException as error:
            response = problem_of_http(error)
        await response(scope, receive, send)


def _name(scope: Scope) -> tuple[str, str]:
    return scope["method"], scope["path"]
