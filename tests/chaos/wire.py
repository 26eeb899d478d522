"""HTTP by hand, for what no client library sends; and the log's answer to what came of it."""

import asyncio
import contextlib
import json
import resource
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from tests.support import Service

MIB = 1024 * 1024
PATIENCE_SECONDS = 40.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of a problem document."""
        assert self.headers["content-type"] == "application/problem+json", self
        return str(self.document["code"])


@dataclass(slots=True)
class Wire:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, url: str) -> Self:
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        """Raises OSError or EOFError where there is none."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode().rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(first.split()[1]), headers, body)

    async def ask(self, data: bytes) -> Answer:
        self.send(data)
        return await self.answer()

    async def rest(self) -> bytes:
        """Everything until the server closes the connection, in whatever way."""
        received = b""
        async with asyncio.timeout(PATIENCE_SECONDS):
            with contextlib.suppress(ConnectionError):
                while data := await self.reader.read(65_536):
                    received += data
        return received

    def reset(self) -> None:
        """Hangs up without a goodbye."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def pause_reading(self) -> None:
        """The kernel's buffers fill up, and then the peer's."""
        transport = self.writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@asynccontextmanager
async def wires(url: str, count: int) -> AsyncGenerator[list[Wire]]:
    opened: list[Wire] = []
    try:
        for _ in range(count):
            opened.append(await Wire.open(url))  # noqa: PERF401  each is closed, whichever fails
        yield opened
    finally:
        for one in opened:
            await one.close()


@asynccontextmanager
async def wire(url: str) -> AsyncGenerator[Wire]:
    opened = await Wire.open(url)
    try:
        yield opened
    finally:
        await opened.close()


def head(path: str = "/tasks", *, method: str = "POST", **fields: object) -> bytes:
    """`content_length=3` and so on become header fields."""
    lines = [f"{method} {path} HTTP/1.1", "Host: api"]
    if method == "POST":
        lines.append("Content-Type: application/json")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def post(body: object, path: str = "/tasks", **fields: object) -> bytes:
    content = json.dumps(body).encode()
    return head(path, method="POST", content_length=len(content), **fields) + content


def get(path: str, **fields: object) -> bytes:
    return head(path, method="GET", **fields)


def task(mark: str) -> dict[str, Any]:
    return {"kind": "mark", "payload": {"mark": mark}}


async def marks(service: Service) -> list[str]:
    """Of all tasks in the log, in the order in which they were created."""
    found: list[str] = []
    position = 0
    while events := await service.log.read_after(position, limit=1000):
        position = events[-1].id
        created = (service.commands.fold([e]) for e in events if e.topic == "TaskCreated")
        found += [state.payload["mark"] for state in created]
    return found


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def peak_mib(pid: int) -> float:
    """The most that was resident since the process began."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def virtual_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
