"""A small HTTP/1.1 client that costs little: it shares the cores with what it measures."""

import asyncio
import json
from typing import Any, NamedTuple, Self, cast
from urllib.parse import urlsplit


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def request(method: str, url: str, body: bytes | None = None) -> bytes:
    """As it goes over the wire."""
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    head = f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + (body or b"")


class Connection(asyncio.Protocol):
    """Keep-alive, one request at a time. Raises ConnectionError once the server has closed it."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._needed = 0
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, url: str) -> Self:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        _, connection = await asyncio.get_running_loop().create_connection(cls, parts.hostname, parts.port)
        return connection

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, data: bytes) -> Answer:
        if self._transport is None or not self.is_open:
            raise ConnectionResetError("closed by the server")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed by the server"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) < self._needed:
            return
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        length = 0
        if (at := head.find(b"\r\ncontent-length:")) >= 0:
            length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        self._needed = end + 4 + length
        if len(self._received) < self._needed:
            return
        answer = Answer(int(head[9:12]), bytes(self._received[end + 4 : self._needed]))
        self._received.clear()
        self._needed = 0
        if self._answer is not None:
            self._answer.set_result(answer)
