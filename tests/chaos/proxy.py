"""A TCP proxy with faults, in a thread of its own: what a network does to a client and its server."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tests.chaos.proxied import READY_FOR_QUERY, Connection, reset

T = TypeVar("T")

CHUNK = 256 * 1024
HELLO_BYTES = 4096
"""How much of a connection's beginning is kept; a PostgreSQL client says there who it is."""
ANSWER_SECONDS = 10


@dataclass(slots=True)
class _Faults:
    delay: float = 0.0
    slice: bool = False
    lose_to_server: bool = False
    lose_to_client: bool = False
    resetting: bool = False
    cut_after: int | None = None
    only: bytes = b""
    """Black hole and reset strike connections that began with this."""


class Proxy:
    """Listens on 127.0.0.1; passes on to `target`, a unix socket's path or an address, which may change.

    Its methods may be called from any thread and have taken effect when they return. The kernel answers
    for this proxy: keepalives never notice what it does.
    """

    def __init__(self, target: str | tuple[str, int]) -> None:
        self.target = target
        self.port = 0
        self.swallowed = 0
        self.accepted = 0
        self._faults = _Faults()
        self._swallow: bytes | None = None
        self._open: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None

    @property
    def connections(self) -> int:
        return len(self._open)

    def start(self) -> int:
        """The port; a second start has that of the first."""
        started: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(started)), name="proxy", daemon=True
        )
        self._thread.start()
        self.port = started.result(ANSWER_SECONDS)
        return self.port

    def stop(self) -> None:
        """Refuse connections and drop those there are. Twice is once."""
        if self._thread is None:
            return
        self._call(self._stop.set)
        self._thread.join(ANSWER_SECONDS)
        self._thread = self._loop = None

    def heal(self) -> None:
        """End every fault. What was cut stays cut; a connection that lost bytes is reset, since a stream
        without its middle exists on no network."""

        def heal() -> None:
            self._faults = _Faults()
            self._swallow = None
            for connection in tuple(self._open):
                connection.left = None
                if connection.lost:
                    connection.healed.set()
                    connection.reset()

        self._call(heal)

    def delay(self, seconds: float) -> None:
        """In each direction, for each piece of data."""
        self._set(delay=seconds)

    def slice(self) -> None:
        """One byte at a time."""
        self._set(slice=True)

    def black_hole(self, *, to_server: bool = True, to_client: bool = True, only: bytes = b"") -> None:
        """Bytes vanish while connections stay open, and new ones meet silence. `only`: of connections that
        began with this, such as an application_name."""
        self._set(lose_to_server=to_server, lose_to_client=to_client, only=only)

    def reset(self, *, only: bytes = b"") -> None:
        """RST to every connection there is, and to new ones until heal()."""

        def strike() -> None:
            for connection in tuple(self._open):
                if self._strikes(connection):
                    connection.reset()

        self._set(resetting=True, only=only)
        self._call(strike)

    def cut_after(self, count: int) -> None:
        """Cut each connection once `count` more bytes have come from the server."""

        def arm() -> None:
            self._faults.cut_after = count
            for connection in self._open:
                connection.left = count

        self._call(arm)

    def swallow_reply(self, *, when: bytes) -> None:
        """Once: pass on the next request that contains `when`, or whose connection began with it; then
        swallow the reply and cut the connection."""
        if not when:
            raise ValueError("swallow the reply to which request?")

        def arm() -> None:
            self._swallow = when

        self._call(arm)

    def _set(self, **faults: Any) -> None:
        def change() -> None:
            self._faults = replace(self._faults, **faults)

        self._call(change)

    def _call(self, act: Callable[[], T]) -> T:
        if self._loop is None:
            raise RuntimeError("the proxy does not run")
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(act())
            except Exception as error:  # noqa: BLE001 (raised in the caller's thread by result())
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(ANSWER_SECONDS)

    async def _run(self, started: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=CHUNK)
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()
        for connection in tuple(self._open):
            connection.reset()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._faults.resetting and not self._faults.only:
            reset(writer)
            return
        try:
            server = await self._connect()
        except OSError:
            reset(writer)
            return
        connection = Connection(reader, writer, *server, left=self._faults.cut_after)
        self._open.add(connection)
        serving = asyncio.create_task(self._serve(connection))
        self._tasks.add(serving)
        serving.add_done_callback(self._tasks.discard)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, str):
            return await asyncio.open_unix_connection(self.target, limit=CHUNK)
        return await asyncio.open_connection(*self.target, limit=CHUNK)

    async def _serve(self, connection: Connection) -> None:
        pumps = [
            asyncio.create_task(self._to_server(connection)),
            asyncio.create_task(self._to_client(connection)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            connection.close()
            self._open.discard(connection)

    async def _to_server(self, connection: Connection) -> None:
        while data := await _read(connection.client_reader):
            if len(connection.hello) < HELLO_BYTES:
                connection.hello += data[: HELLO_BYTES - len(connection.hello)]
            if self._strikes(connection) and self._faults.resetting:
                connection.reset()
                return
            if self._is_awaited(connection, data):
                self._swallow = None
                connection.swallowing = True
            if not (self._strikes(connection) and self._faults.lose_to_server):
                await self._pass_on(data, connection.server)
            else:
                connection.lost = True
        await self._hide_the_end(connection, "lose_to_server")

    async def _to_client(self, connection: Connection) -> None:
        while data := await _read(connection.server_reader):
            if connection.swallowing:
                connection.tail = (connection.tail + data)[-6:]
                if not connection.postgres or connection.tail.startswith(READY_FOR_QUERY):
                    self.swallowed += 1
                    connection.reset()
                    return
                continue
            if self._strikes(connection) and self._faults.lose_to_client:
                connection.lost = True
                continue
            if connection.left is not None:
                data, connection.left = data[: connection.left], connection.left - len(data)
            await self._pass_on(data, connection.client)
            if connection.left is not None and connection.left <= 0:
                return
        await self._hide_the_end(connection, "lose_to_client")

    def _strikes(self, connection: Connection) -> bool:
        return self._faults.only in connection.hello

    def _is_awaited(self, connection: Connection, data: bytes) -> bool:
        wanted = self._swallow
        if wanted is None or not connection.is_request(data):
            return False
        return wanted in data or wanted in connection.hello

    async def _hide_the_end(self, connection: Connection, direction: str) -> None:
        """In a black hole the peer does not learn that the connection was closed either."""
        if self._strikes(connection) and getattr(self._faults, direction):
            connection.lost = True
            await connection.healed.wait()

    async def _pass_on(self, data: bytes, sink: asyncio.StreamWriter) -> None:
        if self._faults.delay:
            await asyncio.sleep(self._faults.delay)
        pieces = [data] if not self._faults.slice else [data[i : i + 1] for i in range(len(data))]
        for piece in pieces:
            sink.write(piece)
            with contextlib.suppress(ConnectionError):  # the peer has gone: the other direction ends too
                await sink.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0)


async def _read(reader: asyncio.StreamReader) -> bytes:
    """b"" also when the peer reset the connection."""
    try:
        return await reader.read(CHUNK)
    except ConnectionError:
        return b""
