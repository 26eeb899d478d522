"""What an API takes on: no request whose time has passed, and no more bodies than fit in memory.

A request's budget runs from the moment its client sent the end of it, as the kernel saw it, not from when
the process came to read it. So a process that was frozen, or is far behind, refuses what has waited too
long instead of doing late what its client has given up on.
"""

import math
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from events.deadline import after
from events.errors import Overloaded, RequestExpired
from taskledger.lateness import LATENESS

EDGE_SECONDS: Final = 5.0
"""The budget of a request, whatever it has to wait for."""

_due: ContextVar[float] = ContextVar("taskledger_request_due", default=math.inf)


def due() -> float:
    """When the budget of the request being served ends, as a time.monotonic() value; outside a request,
    EDGE_SECONDS from now. What a request asked to wait for comes on top."""
    return min(_due.get(), after(EDGE_SECONDS))


class AdmissionMiddleware:
    """Raises RequestExpired and Overloaded: it must lie within the one that turns errors into answers."""

    def __init__(self, app: ASGIApp, *, room: "Room") -> None:
        self._app = app
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lateness = scope.get("extensions", {}).get(LATENESS, _unknown)
        token = _due.set(math.inf)
        intake = _Intake(self._room, receive, lateness)
        try:
            declared = _declared(scope)
            # Health is asked by those who judge us by the answer, and a body is judged by its end.
            if not declared and not scope["path"].startswith("/health/"):
                _begin(lateness)
            self._room.check(declared)
            await self._app(scope, intake.receive, send)
        finally:
            self._room.taken -= intake.taken
            _due.reset(token)


@dataclass(slots=True)
class Room:
    """Bytes of bodies, of all requests under way together."""

    most: int
    taken: int = 0

    def check(self, more: int) -> None:
        """Raises Overloaded. What could never fit is left to the route, which knows its limit."""
        if self.taken + more > self.most >= more:
            raise Overloaded("too many large requests are under way")


@dataclass(slots=True)
class _Intake:
    """A request's body as it comes in. It counts until the request is answered, since what is made of
    it takes memory as long."""

    room: Room
    next: Receive
    lateness: Callable[[], float]
    taken: int = 0

    async def receive(self) -> Message:
        message = await self.next()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.room.check(size)
            self.room.taken += size
            self.taken += size
            if self.taken and not message.get("more_body", False):
                _begin(self.lateness)
        return message


def _begin(lateness: Callable[[], float]) -> None:
    """Raises RequestExpired."""
    waited = lateness()
    if waited >= EDGE_SECONDS:
        raise RequestExpired("the request had waited too long, or its client had gone, when it was read")
    _due.set(after(EDGE_SECONDS - waited))


def _declared(scope: Scope) -> int:
    """Of a body that is not here yet."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _unknown(*_: Any) -> float:
    return 0.0
