"""The command API for tests: the real application, in this process or on a port of its own."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from redis.asyncio import Redis

from command_side.api.app import create_app
from events.task_state import TaskState
from taskledger.serving import configure
from taskledger.settings import (
    CommandApiSettings,
    ExternalKind,
    HttpSettings,
    PostgresSettings,
    QueryApiSettings,
    RedisSettings,
    Settings,
)
from tests.support import Service, eventually

SUM: Final[dict[str, Any]] = {"kind": "sum", "payload": {"x": 1, "y": 2}}
GREET: Final[dict[str, Any]] = {"kind": "greet", "payload": {"name": "Ada"}}
EXTERNAL: Final[dict[str, ExternalKind]] = {
    "greet": ExternalKind(queue="front"),
    "resize": ExternalKind(
        queue="images",
        payload_schema={
            "type": "object",
            "required": ["url", "width"],
            "properties": {"url": {"type": "string"}, "width": {"$ref": "#/$defs/size"}},
            "additionalProperties": False,
            "$defs": {"size": {"type": "integer", "minimum": 1}},
        },
    ),
}
_HTTP: Final = HttpSettings()
NO_REDIS: Final = "redis://127.0.0.1:1"
"""Nothing listens there."""


def settings_for(dsn: str, redis_url: str, **others: Any) -> Settings:
    return Settings(
        postgres=PostgresSettings(dsn=SecretStr(dsn)),
        redis=RedisSettings(url=SecretStr(redis_url)),
        query_api=others.pop("query_api", QueryApiSettings(public_url="https://tasks.example/")),
        command_api=others.pop("command_api", CommandApiSettings()),
        external_kinds=others.pop("external_kinds", EXTERNAL),
        handlers=("examples.handlers",),
        **others,
    )


@asynccontextmanager
async def in_process(settings: Settings) -> AsyncGenerator[httpx.AsyncClient]:
    """The application behind a client, without a socket. Defects raise instead of answering 500."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api", timeout=30) as client,
    ):
        yield client


@asynccontextmanager
async def on_port(app: FastAPI, http: HttpSettings = _HTTP) -> AsyncGenerator[str]:
    """`host:port` of a real server."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(configure(app, http))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await eventually(lambda: _started(server), "the server's start")
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listening.close()


async def _started(server: uvicorn.Server) -> bool:
    return server.started


@dataclass(frozen=True, slots=True)
class Tasks:
    """What tests do over and over."""

    client: httpx.AsyncClient
    service: Service
    redis: Redis

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return await self.client.post(path, json={} if body is None else body, **options)

    async def create(self, body: Any = SUM) -> str:
        answer = await self.post("/tasks", body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def publish(self, task_id: str) -> None:
        """What the relay does."""
        await self.service.publish(self.redis, await self.state(task_id))

    async def started(self, body: Any = GREET) -> str:
        """The id of a task at its first attempt, held over HTTP."""
        task_id = await self.create(body)
        answer = await self.post(f"/tasks/{task_id}/start", {"worker": "w"})
        assert answer.status_code == 200, answer.text
        return task_id

    async def state(self, task_id: str) -> TaskState:
        return await self.service.state(UUID(task_id))


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document, if the answer is the one expected."""
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    ), answer.text
    document: dict[str, Any] = answer.json()
    assert (document["status"], document["code"]) == (status, code), document
    assert document["request_id"] == answer.headers["x-request-id"]
    assert {"type", "title", "detail"} <= document.keys()
    return document


def locations(document: dict[str, Any]) -> list[str]:
    return [error["location"] for error in document["errors"]]
