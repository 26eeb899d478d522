"""The command API's composition root: everything is made here and passed down."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from command_side.api import openapi
from command_side.api.claims import Claims
from command_side.api.context import Api, Webhooks
from command_side.api.database import Database
from command_side.api.entries import Entries
from command_side.api.kinds import Kinds
from command_side.api.leases import Leases
from command_side.api.queues import QueueRoutes
from command_side.api.schemas import REQUESTS
from command_side.api.submit import SubmitRoutes
from command_side.api.tasks import TaskRoutes
from command_side.api.webhooks import WebhookRoutes
from command_side.clock import DatabaseClock
from command_side.service import CommandService
from command_side.webhooks.resolver import Resolve, SystemResolver, guard_of
from command_side.webhooks.service import WebhookService
from events.codec import EventMapper
from events.errors import BrokerUnavailable, ConfigurationError, Overloaded
from events.group_commit import GroupCommit
from events.postgres_log import PostgresLog
from events.witness import Witness
from taskledger.direct import add_direct
from taskledger.encryption import Encryption, refuse_wrong_key
from taskledger.http import NO_TELEMETRY, install, on_stopping, serve
from taskledger.operator_routes import add_docs, add_health, add_metrics
from taskledger.postgres import WAITING_PER_CONNECTION, connect, make_pool
from taskledger.redis import make_redis
from taskledger.registry import load_registry
from taskledger.settings import Settings

_PING_SECONDS = 1.0


def run(settings: Settings) -> None:
    """Serves until it is told to stop. Raises ConfigurationError for a setting it cannot work with."""
    refuse_wrong_key(settings)
    api = settings.command_api
    serve(
        create_app(settings),
        host=api.host,
        port=api.port,
        setting="TASKLEDGER__COMMAND_API__PORT",
        http=settings.http,
    )


def create_app(settings: Settings, resolve: Resolve | None = None) -> FastAPI:
    """Connects to nothing before its lifespan begins; then it serves, whether its servers answer or not.
    `resolve` looks up the hosts of webhooks, the machine's own resolver if it is None.

    Raises ConfigurationError for missing DSNs, handlers that cannot be loaded, wrong external kinds.
    """
    dsn = settings.require_postgres()
    registry = load_registry(settings.handlers)
    encrypts = settings.encryption.master_key_file is not None
    kinds = Kinds(registry, settings.external_kinds, encrypts=encrypts)
    size = settings.postgres.pool_size
    pool = make_pool(dsn, name="command-api", size=size, max_waiting=size * WAITING_PER_CONNECTION)
    witness = Witness()
    log = PostgresLog(pool, lambda: connect(dsn, name="command-api-append"), witness)
    commits = GroupCommit(log)
    clock = DatabaseClock()
    encryption = Encryption(settings.encryption, log.rows, lambda: connect(dsn, name="command-api-keys"))
    service = CommandService(log, commits, EventMapper(), clock, encryption.vault)
    database = Database(pool, clock, witness)
    leases = Leases(pool, settings.lease_seconds)
    entries = _entries(settings)
    claims = None if entries is None else Claims(service, entries, leases)
    resolver = SystemResolver()
    api = Api(
        settings=settings.command_api,
        service=service,
        clock=clock,
        database=database,
        kinds=kinds,
        leases=leases,
        claims=claims,
        webhooks=_webhooks(settings, WebhookService(log, commits, EventMapper()), resolve or resolver),
        query_url=settings.query_api.url,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(pool)
            stack.callback(resolver.close)
            if entries is not None:
                stack.push_async_callback(entries.close)
            stack.push_async_callback(log.close)
            stack.push_async_callback(commits.drain)
            await stack.enter_async_context(_background(database.watch()))
            await stack.enter_async_context(_background(encryption.watch()))
            yield

    submit = SubmitRoutes(api)

    async def degraded() -> Sequence[str]:
        return [] if entries is None else await _degraded(entries)

    app = _describe(
        FastAPI(
            title="taskledger: commands",
            version=version("taskledger"),
            description="Everything that changes a task. What a task is like now, the query API tells.",
            docs_url=None,
            redoc_url=None,
            telemetry=NO_TELEMETRY,
            lifespan=lifespan,
        ),
        settings,
        submit,
    )
    for routes in (submit, TaskRoutes(api), QueueRoutes(api), WebhookRoutes(api)):
        app.include_router(routes.router())

    async def missing() -> Sequence[str]:
        return [*await database.missing(), *await encryption.missing()]

    add_health(app, missing, degraded)
    add_metrics(app)
    add_docs(app)
    if claims is not None:
        on_stopping(app, claims.close)
    return app


def _describe(app: FastAPI, settings: Settings, submit: SubmitRoutes) -> FastAPI:
    openapi.describe(app, REQUESTS)
    if settings.http.max_body_bytes_in_memory < settings.command_api.max_batch_bytes:
        raise ConfigurationError(
            "TASKLEDGER__HTTP__MAX_BODY_BYTES_IN_MEMORY: no room for one batch"
            f" (TASKLEDGER__COMMAND_API__MAX_BATCH_BYTES is {settings.command_api.max_batch_bytes})"
        )
    add_direct(app, install(app, settings.http), submit.direct())
    return app


def _entries(settings: Settings) -> Entries | None:
    """Claims alone need Redis: without it everything else works."""
    if settings.redis.url is None and not settings.external_kinds:
        return None
    redis = make_redis(settings.require_redis(), name="command-api")
    consumer = f"command-api-{socket.gethostname()}-{settings.command_api.port}"
    return Entries(redis, consumer, idle_seconds=settings.lease_seconds)


def _webhooks(settings: Settings, service: WebhookService, resolve: Resolve) -> Webhooks | None:
    secrets = settings.webhook_secrets()
    return Webhooks(service, guard_of(settings.webhooks, resolve), secrets[0]) if secrets else None


@asynccontextmanager
async def _background(watching: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    task = asyncio.create_task(watching)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _degraded(entries: Entries) -> Sequence[str]:
    try:
        async with asyncio.timeout(_PING_SECONDS):
            await entries.ping()
    except (BrokerUnavailable, Overloaded, TimeoutError):
        return ["claims: Redis does not answer"]
    return []
