"""Event streams in tests: a client that reads, dies and comes back as a browser would."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx

from query_side.api.app import create_app
from tests.integration.command_api import on_port
from tests.integration.query import NO_HANDLERS, settings_for
from tests.support import eventually

STREAM = {"Accept": "text/event-stream"}


@dataclass(frozen=True)
class Received:
    id: str
    type: str
    data: Any

    @property
    def position(self) -> int:
        return position(self.id)


def position(token: str) -> int:
    return int(token.partition(".")[0])


class Refused(Exception):  # noqa: N818  says what happened
    """Not a stream, but a problem: (status, code)."""


class Parser:
    """As the standard says: an event counts once its empty line is there, and so does its id."""

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.events: list[Received] = []
        self.comments = 0
        self.retry: int | None = None
        self.ids: list[str] = []
        """Of every block, also of those without data."""
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            self._block(block.decode())

    def _block(self, text: str) -> None:
        fields: dict[str, str] = {}
        for line in text.split("\n"):
            name, colon, value = line.partition(":")
            assert colon, line
            fields[name] = value.removeprefix(" ")
        assert fields.keys() <= {"", "id", "event", "data", "retry"}, text
        self.comments += "" in fields
        if "retry" in fields:
            self.retry = int(fields["retry"])
        if "id" in fields:
            self.last_id = fields["id"]
            self.ids.append(fields["id"])
        if "data" in fields:
            assert self.last_id is not None
            self.events.append(Received(self.last_id, fields["event"], json.loads(fields["data"])))


class Stream:
    """One that is open."""

    def __init__(self, response: httpx.Response, last_id: str | None, dies_after: int | None) -> None:
        self.response = response
        self.parser = Parser(last_id)
        self.ended = False
        self._dies_after = dies_after
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        left = self._dies_after
        async for data in self.response.aiter_raw():
            self.parser.feed(data[:left])
            if left is not None and (left := left - len(data)) <= 0:
                return
        self.ended = True

    @property
    def events(self) -> list[Received]:
        return self.parser.events

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    async def until(self, count: int, within: float = 30) -> list[Received]:
        """The events, once there are so many."""

        async def there() -> bool:
            if self._reading.done():
                self._reading.result()
            return len(self.events) >= count

        await eventually(there, f"{count} events, beside {len(self.events)}", within=within)
        return self.events

    async def end(self) -> None:
        """Returns when the server has ended it, in order, or it has died as it was to."""
        await asyncio.wait_for(self._reading, 30)

    async def live(self, seconds: float) -> None:
        """As end(), or after so long."""
        await asyncio.wait({self._reading}, timeout=seconds)
        if self._reading.done():
            self._reading.result()

    async def kill(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


class Feeds:
    """A query API on a port of its own, and who streams from it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, timeout=20, trust_env=False)

    async def __aenter__(self) -> Self:
        await self.http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    @asynccontextmanager
    async def stream(
        self,
        path: str = "/events",
        *,
        last_id: str | None = None,
        dies_after: int | None = None,
        **params: Any,
    ) -> AsyncGenerator[Stream]:
        """Leaving the block hangs up. After `dies_after` bytes the client reads no more, wherever it is."""
        headers = STREAM if last_id is None else {**STREAM, "Last-Event-ID": last_id}
        async with self.http.stream("GET", path, headers=headers, params=params) as response:
            if response.status_code != 200:
                await response.aread()
                raise Refused(response.status_code, response.json()["code"])
            assert response.headers["content-type"].startswith("text/event-stream")
            stream = Stream(response, last_id, dies_after)
            try:
                yield stream
            finally:
                await stream.kill()

    @asynccontextmanager
    async def streams(self, *wanted: dict[str, Any]) -> AsyncGenerator[list[Stream]]:
        """As stream(), one for each."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.stream(**each)) for each in wanted]

    async def open_streams(self) -> int:
        """As the server counts them."""
        for line in (await self.http.get("/metrics")).text.splitlines():
            if line.startswith("taskledger_streams_open "):
                return int(float(line.split()[1]))
        return 0


@asynccontextmanager
async def feeds(dsn: str, **more: Any) -> AsyncGenerator[Feeds]:
    """In this process, over real sockets."""
    app = create_app(settings_for(dsn, **more), NO_HANDLERS)
    async with on_port(app) as address, Feeds(f"http://{address}") as found:
        yield found
