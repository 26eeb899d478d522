"""The APIs against clients that are slow, silent, malformed, too many or too large."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from command_side.api.app import create_app
from taskledger import protocol
from taskledger.protocol import HttpConnection
from taskledger.settings import CommandApiSettings, HttpSettings
from tests.chaos.wire import Wire, get, head, post, wire
from tests.integration.command_api import NO_REDIS, SUM, on_port, settings_for
from tests.support import Service, eventually


@pytest.fixture
async def url(dsn: str) -> AsyncIterator[str]:
    """A command API in this process."""
    async with on_port(create_app(settings_for(dsn, NO_REDIS))) as address:
        yield f"http://{address}"


UNHURRIED_SECONDS = 10.0
"""What the shortest of the deadlines would be otherwise."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadlines of connections, ten times as short."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(protocol, "BODY_SECONDS", 3.0)


async def test_api_silent_and_slow_clients_are_shown_out(url: str, quick: None) -> None:
    """Silence, headers byte by byte, a body that stalls, more of a body that nobody asked for -> closed
    within the deadline of each; a client that behaves is served on the same connection meanwhile."""
    since = time.monotonic()
    async with wire(url) as silent, wire(url) as slow, wire(url) as stalled, wire(url) as useless:
        stalled.send(head(content_length=100) + b"{")
        useless.send(head("/nothing", content_length=100) + b"{")
        answers: asyncio.Task[bytes] = asyncio.create_task(slow.rest())
        async with wire(url) as healthy:
            for byte in get("/health/live", x_filler="x" * 10_000):
                if answers.done():
                    break
                slow.send(bytes([byte]))
                assert (await healthy.ask(get("/health/live"))).status == 200
        assert await silent.rest() == b""
        assert b"HTTP/1.1 408 " in await answers
        timeout = await stalled.answer()
        assert (timeout.status, timeout.code, timeout.headers["connection"]) == (
            408,
            "request_timeout",
            "close",
        )
        assert await stalled.rest() == b""
        assert (await useless.answer()).status == 404
        assert await useless.rest() == b""
    assert time.monotonic() - since < UNHURRIED_SECONDS


async def test_api_idle_connections_are_kept_for_balancers(url: str, quick: None) -> None:
    """A client rests between requests, or sends blank lines -> it keeps its connection for as long as
    balancers do; blank lines do not keep it for ever."""
    async with wire(url) as kept, wire(url) as blank:
        for connection in (kept, blank):
            assert (await connection.ask(get("/health/live"))).status == 200
        blank.send(b"\r\n")
        assert (await blank.rest()).startswith(b"HTTP/1.1 408 ")
        assert (await kept.ask(get("/health/live"))).status == 200


async def test_api_answers_that_nobody_reads_are_given_up(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client asks on and on and reads nothing -> its connection is cut, and nothing of it stays."""
    monkeypatch.setattr(protocol, "READ_SECONDS", 0.3)
    made: list[HttpConnection] = []
    original = HttpConnection.connection_made

    def connection_made(self: HttpConnection, transport: object) -> None:
        made.append(self)
        original(self, transport)

    monkeypatch.setattr(HttpConnection, "connection_made", connection_made)
    async with on_port(create_app(settings_for(dsn, NO_REDIS))) as address:
        opened = await Wire.open(f"http://{address}")
        opened.pause_reading()

        async def cut() -> bool:
            # Without an end: a machine under load refuses some, in few bytes that a socket can hold.
            opened.send(get("/openapi.json") * 20)
            return bool(made) and not made[0].connections and not made[0].tasks

        await eventually(cut, "the connection and its request to be gone", within=40)
        opened.reset()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(20), 400),
        (random.Random(1).randbytes(500), 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", 431),
        (b"GET /" + b"x" * 200_000, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 1_000_000, 431),
        (head(transfer_encoding="chunked") + b"nonsense\r\n", 400),
    ],
    ids=["tls", "http2", "random", "header", "fields", "address", "endless", "chunks"],
)
async def test_api_what_is_not_http_is_refused(
    url: str, sent: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """TLS, HTTP/2, noise, headers without end, broken chunks -> a 4xx problem, closed, and no line in the
    log for each; a connection beside it is not disturbed."""
    async with wire(url) as healthy:
        for _ in range(20):
            async with wire(url) as bad:
                bad.send(sent)
                refused = await bad.answer()
                assert (refused.status, refused.headers["connection"]) == (status, "close")
                assert refused.code in {"malformed_request", "headers_too_large"}
                assert await bad.rest() == b""
        assert (await healthy.ask(get("/health/live"))).status == 200
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []


async def test_api_an_upgrade_is_not_taken_up(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """`Upgrade: h2c` -> answered as what it is, and the connection ends."""
    async with wire(url) as client:
        client.send(get("/health/live", connection="Upgrade", upgrade="h2c") + b"PRI * HTTP/2.0\r\n")
        assert (await client.answer()).status == 200
        assert await client.rest() == b""
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []


async def test_api_garbage_behind_a_request_is_not_its_answer(url: str, service: Service) -> None:
    """A request, and noise on its heels -> the request gets its own answer, and nothing else comes."""
    async with wire(url) as client:
        client.send(post(SUM) + b"\x16\x03\x01 noise\r\n\r\n")
        assert (await client.answer()).status == 201
        assert await client.rest() == b""
    assert await service.log.head() > 0


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_api_clients_that_hang_up_leave_nothing(
    url: str, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """Reset in the middle of the headers, of the body, or before the answer, many times -> no traces, no
    connection or slot kept."""
    body = json.dumps(SUM).encode()
    whole = head(content_length=len(body)) + body
    before = descriptors()
    for n in range(300):
        opened = await Wire.open(url)
        opened.send(whole[: n * len(whole) // 299])
        if n % 3:
            await asyncio.sleep(0)
        opened.reset()

    async def nothing_left() -> bool:
        return descriptors() <= before + 2

    await eventually(nothing_left, "every descriptor to be closed")
    async with wire(url) as client:
        assert (await client.ask(post(SUM))).status == 201
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []


async def test_api_beyond_its_connections_the_quiet_ones_go(dsn: str) -> None:
    """More connections than allowed -> whoever is quiet for longest is closed; when all are busy, the new
    one is told to come again."""
    few = HttpSettings(max_connections=8)
    async with on_port(create_app(settings_for(dsn, NO_REDIS, http=few)), few) as address:
        url = f"http://{address}"
        quiet = [await Wire.open(url) for _ in range(8)]
        async with wire(url) as ninth:
            assert (await ninth.ask(get("/health/live"))).status == 200
            assert await quiet[0].rest() == b""
            for connection in quiet[1:]:
                connection.send(head(content_length=100) + b"{")
            assert (await ninth.ask(get("/health/live"))).status == 200
            ninth.send(head(content_length=100) + b"{")
            async with wire(url) as late:
                refused = await late.ask(get("/health/live"))
            assert (refused.status, refused.code, refused.headers["retry-after"]) == (
                503,
                "overloaded",
                "1",
            )
        for connection in quiet:
            connection.reset()


async def test_api_bodies_beyond_its_memory_are_refused(dsn: str, service: Service) -> None:
    """More bytes of bodies under way than allowed -> 429, with or without a declared length; what was let
    in is stored, and afterwards there is room again."""
    tight = HttpSettings(max_body_bytes_in_memory=100_000)
    sizes = CommandApiSettings(max_body_bytes=60_000, max_batch_bytes=60_000)
    settings = settings_for(dsn, NO_REDIS, command_api=sizes, http=tight)
    body = json.dumps({"kind": "greet", "payload": {"name": "x" * 50_000}}).encode()
    chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    async with on_port(create_app(settings), tight) as address:
        url = f"http://{address}"
        async with wire(url) as first, wire(url) as second, wire(url) as third:
            first.send(head(content_length=len(body)) + body[:-1])
            second.send(head(content_length=len(body)) + body[:40_000])
            await asyncio.sleep(0)

            async def full() -> bool:
                refused = await third.ask(head(content_length=len(body)) + body)
                assert refused.status in {201, 429}
                assert refused.status == 201 or refused.headers["retry-after"] == "1"
                return refused.status == 429 and refused.code == "overloaded"

            await eventually(full, "the memory to be full")
            assert (await third.ask(head(transfer_encoding="chunked") + chunk)).status == 429
            before = await service.log.head()
            first.send(body[-1:])
            assert (await first.answer()).status == 201
            assert (await third.ask(head(transfer_encoding="chunked") + chunk)).status == 201
            assert await service.log.head() == before + 2
