"""The query API in tests, over a real database."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from query_side.api.app import create_app
from taskledger.registry import Registry
from taskledger.settings import ExternalKind, Settings

NO_HANDLERS = Registry((), {})


def settings_for(dsn: str, **more: Any) -> Settings:
    values: dict[str, Any] = {"postgres": {"dsn": dsn, "pool_size": 4}, **more}
    return Settings.model_validate(values)


@asynccontextmanager
async def query_api(
    dsn: str, registry: Registry = NO_HANDLERS, **more: Any
) -> AsyncGenerator[httpx.AsyncClient]:
    app = create_app(settings_for(dsn, **more), registry)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://query") as client,
    ):
        yield client


EXTERNAL = {"scan": ExternalKind(queue="q0", payload_schema={"type": "object"})}
