"""A receiver of webhooks on loopback that behaves as it is told, and the process that delivers."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from eventsourcing.persistence import StoredEvent

from command_side.commands import CompleteTask, StartTask
from command_side.webhooks import signing
from command_side.webhooks.main import WebhooksStatus, serve
from command_side.webhooks.resolver import Resolve
from command_side.webhooks.service import WebhookService
from command_side.webhooks.webhook import CreateWebhook
from events.append import AppendCommand, Appended, StreamAppend
from events.task_state import TaskState
from events.webhook_events import WebhookState
from taskledger.settings import Settings
from tests.support import Service, eventually

MASTER: Final = "a master secret that is long enough to be one"
LOOPBACK: Final = ["127.0.0.0/8", "::1/128"]
QUICK: Final[dict[str, Any]] = {
    "secret": MASTER,
    "allowed_networks": LOOPBACK,
    "retry_base_seconds": 0.05,
    "retry_cap_seconds": 0.2,
    "timeout_seconds": 5.0,
}
"""Retries within a test's patience; an endpoint's pause goes on by its own steps."""


@dataclass(frozen=True, slots=True)
class Received:
    path: str
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Reply = bytes | None
"""What is sent back as it stands; None: nothing, for ever."""
Behaviour = Callable[[Received], Reply]


def reply(status: int, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


OK: Final = reply(200)


@dataclass
class Receiver:
    port: int = 0
    scheme: str = "http"
    behaviour: Behaviour = lambda _: OK
    received: list[Received] = field(default_factory=list[Received])
    connections: list[asyncio.StreamWriter] = field(default_factory=list[asyncio.StreamWriter])

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook?of=tasks"

    @property
    def ids(self) -> list[str]:
        return [r.id for r in self.received]

    async def has(self, count: int) -> list[Received]:
        async def enough() -> bool:
            return len(self.received) >= count

        await eventually(enough, f"{count} requests", within=30)
        return self.received

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        try:
            while (request := await _read(reader)) is not None:
                self.received.append(request)
                answer = self.behaviour(request)
                if answer is None:
                    await reader.read()  # until the other side has had enough
                    return
                writer.write(answer)
                await writer.drain()
                if not answer.startswith(b"HTTP/1.1 ") or b"\r\n\r\n" not in answer:
                    return  # no answer at all: what is left is to hang up
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(first.split(" ")[1], headers, body)


@asynccontextmanager
async def receiver(
    behaviour: Behaviour = lambda _: OK, *, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncGenerator[Receiver]:
    made = Receiver(behaviour=behaviour, scheme="http" if context is None else "https")
    server = await asyncio.start_server(made.serve, host, 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for writer in made.connections:
            writer.close()
        await server.wait_closed()


def verify(secret: str, request: Received) -> bool:
    """Written from the specification, with nothing of ours."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{request.id}.{request.headers['webhook-timestamp']}.".encode() + request.body
    wanted = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    given = [part.split(",", 1) for part in request.headers["webhook-signature"].split(" ")]
    return any(version == "v1" and hmac.compare_digest(text, wanted) for version, text in given)


def settings_for(dsn: str, **hooks: Any) -> Settings:
    values: dict[str, Any] = {
        "postgres": {"dsn": dsn, "pool_size": 4},
        "query_api": {"public_url": "https://tasks.example/"},
        "webhooks": {**QUICK, **hooks},
    }
    return Settings.model_validate(values)


@asynccontextmanager
async def delivering(
    dsn: str, *, resolve: Resolve | None = None, **hooks: Any
) -> AsyncGenerator[WebhooksStatus]:
    """The process `webhooks`, but for its signals. Defects in it fail the test."""
    stop, status = asyncio.Event(), WebhooksStatus()
    serving = asyncio.create_task(serve(settings_for(dsn, **hooks), stop, status, resolve))
    try:
        yield status
    finally:
        stop.set()
        await serving


@dataclass(frozen=True, slots=True)
class Hooks:
    """What tests do over and over."""

    service: Service
    webhooks: WebhookService

    @classmethod
    def over(cls, service: Service) -> "Hooks":
        return cls(service, WebhookService(service.log, service.commits, service.mapper))

    async def create(
        self, url: str, types: tuple[str, ...] = ("TaskCompleted",), **more: Any
    ) -> WebhookState:
        return (await self.webhooks.create(CreateWebhook(url=url, types=types, **more))).state

    async def completed(self, result: Any = None, **options: Any) -> TaskState:
        task = await self.service.create(**options)
        await self.service.execute(task.id, StartTask(holder="h", worker="w"))
        return (await self.service.execute(task.id, CompleteTask(1, result))).state

    async def many(self, count: int, **options: Any) -> list[TaskState]:
        return list(await asyncio.gather(*(self.completed(n, **options) for n in range(count))))

    async def rows(self, what: str = "*") -> list[tuple[Any, ...]]:
        """Of the deliveries, by position."""
        async with self.service.pool.connection() as connection:
            cursor = await connection.execute(
                f"select {what} from taskledger.webhook_deliveries order by position".encode()
            )
            return list(await cursor.fetchall())

    async def statuses(self) -> list[str]:
        return [str(row[0]) for row in await self.rows("status")]

    async def become(self, *statuses: str) -> None:
        """Waits until the deliveries, by position, have these statuses."""

        async def there() -> bool:
            return await self.statuses() == list(statuses)

        await eventually(there, f"deliveries to be {statuses}", within=30)

    async def append(self, stream: UUID, version: int, topic: str, state: bytes) -> None:
        """What another release may have written."""
        event = StoredEvent(stream, version, topic, state)
        outcome = await self.service.commits.append(AppendCommand([StreamAppend(stream, [event])]))
        assert isinstance(outcome, Appended)

    async def caught_up(self) -> None:
        """Waits until the follower is at the head of the log."""

        async def there() -> bool:
            async with self.service.pool.connection() as connection:
                cursor = await connection.execute(
                    "select position from taskledger.checkpoints where name = 'webhooks'"
                )
                row = await cursor.fetchone()
            return row == (await self.service.log.head(),)

        await eventually(there, "the follower to be at the head", within=30)

    async def disabled(self, webhook: WebhookState, cause: str) -> None:
        """Waits until the log says so."""

        async def there() -> bool:
            last = (await self.service.log.read_stream(webhook.id))[-1]
            return last.topic == "WebhookDisabled" and f'"cause":"{cause}"'.encode() in last.state

        await eventually(there, f"it to be disabled as {cause}", within=30)


def position_of(message_id: str) -> int:
    return int(message_id.split("_")[1])


def secret_of(webhook: WebhookState, generation: int = 1, master: str = MASTER) -> str:
    return signing.shown(signing.secret(master.encode(), webhook.id, generation))
