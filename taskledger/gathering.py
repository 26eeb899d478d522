"""Writes that leave together: head and body of an answer, and the answers of one turn, in one packet."""

import asyncio
from typing import Any


class GatheringTransport:
    """What is written within one turn of the event loop is sent at its end, in one system call. uvicorn
    writes an answer's head and body apart, each of which would be a call and a packet of its own, and for
    the client two times to wake up. Everything else is the transport's own."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes] = []
        self.is_closing = transport.is_closing
        self.abort = transport.abort

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered and not self._transport.is_closing():
            self._transport.write(b"".join(gathered))
