"""An answer that goes on: a live stream over ASGI."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Final

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from query_side import sse
from query_side.api.answers import POSITION_HEADER
from query_side.live import LiveStream
from taskledger.protocol import ABORT


def wants_stream(request: Request) -> bool:
    """Whether the client's Accept names event streams. Whoever takes anything gets JSON."""
    for value in request.headers.getlist("accept"):
        for item in value.split(","):
            media_type, *parameters = (part.strip().lower() for part in item.split(";"))
            if media_type == sse.MEDIA_TYPE and not any(_is_zero(p) for p in parameters):
                return True
    return False


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip().rstrip("0") in ("", "0.", ".")


class EventStream(Response):
    """Opens the stream when it is sent, so that a refusal is an ordinary problem document. A stream that
    has nothing to give and never will is 204, which tells an EventSource not to come back."""

    media_type = sse.MEDIA_TYPE
    HEADERS: Final = {"Cache-Control": "no-store", "Vary": "Accept", "X-Accel-Buffering": "no"}
    """The last one: nginx holds answers back unless it is told not to."""

    def __init__(self, opening: AbstractAsyncContextManager[LiveStream]) -> None:
        super().__init__(headers=self.HEADERS, media_type=self.media_type)
        del self.headers["content-length"]
        self._opening = opening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opening as stream:
            if stream.finished:
                await Response(status_code=204, headers=self.HEADERS)(scope, receive, send)
                return
            self.headers[POSITION_HEADER] = stream.token
            await _Writer(scope, stream).write(self.raw_headers, receive, send)


class _Writer:
    """Writes no faster than the client reads. One that reads nothing is cut off by the server's deadline
    for unread answers, and at once when the stream is told to end."""

    def __init__(self, scope: Scope, stream: LiveStream) -> None:
        self._abort: Callable[[], None] = scope.get("extensions", {}).get(ABORT, _nothing)
        self._stream = stream
        self._blocked = False
        stream.on_end = self._on_end

    async def write(self, headers: list[tuple[bytes, bytes]], receive: Receive, send: Send) -> None:
        watching = asyncio.create_task(self._await_departure(receive), name="stream-client")
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async with aclosing(self._stream.pieces()) as pieces:
                async for piece in pieces:
                    await self._send_piece(piece, send)
            await send({"type": "http.response.body", "body": b""})
        finally:
            watching.cancel()
            self._stream.on_end = None  # or each would keep the other until a garbage collection

    async def _send_piece(self, piece: bytes, send: Send) -> None:
        self._blocked = True
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        self._blocked = False
        # What was written leaves at the end of the loop's turn: only then is known whether it was too much.
        await asyncio.sleep(0)

    async def _await_departure(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._stream.end()

    def _on_end(self) -> None:
        if self._blocked:
            self._abort()


def _nothing() -> None:
    """Where the server has no way to cut a connection off."""
