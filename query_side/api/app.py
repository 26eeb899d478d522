"""`taskledger query-api`: puts the read side together."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from uuid import UUID

import psycopg
from fastapi import FastAPI

from events.codec import EventMapper
from events.errors import LogRewound, SchemaNotReady, Unavailable
from events.ids import DEFAULT_TENANT
from events.migrate import newest_revision
from events.witness import LOOK, Witness
from query_side.api.feed_routes import feed_routes
from query_side.api.overview_routes import overview_routes
from query_side.api.proof_routes import proof_routes
from query_side.api.task_routes import task_routes
from query_side.api.usage_routes import usage_routes
from query_side.api.webhook_routes import webhook_routes
from query_side.consistency import Consistency
from query_side.cursor import Signers
from query_side.explain.gather import Explanations
from query_side.feed import LogFeed
from query_side.history import History
from query_side.live import Streams
from query_side.moments import Moments
from query_side.overview import Overview, kinds
from query_side.past import Past
from query_side.past_stats import PastStats
from query_side.proof import Proofs
from query_side.read_model import ReadModel, statement
from query_side.tail import Tail
from query_side.tasks import TASK, Tasks
from query_side.usage import PROJECTION, Usage
from query_side.watch import ReadWatch
from query_side.webhooks import Webhooks
from taskledger.encryption import Encryption, refuse_wrong_key
from taskledger.http import NO_TELEMETRY, PROBLEMS, install, on_stopping, serve
from taskledger.operator_routes import add_docs, add_health, add_metrics
from taskledger.postgres import SESSION, WAITING_PER_CONNECTION, connect, make_pool
from taskledger.registry import Registry, load_registry
from taskledger.settings import Settings

_SESSION: Final = f"{SESSION} -c enable_seqscan=off -c default_transaction_read_only=on"
"""A plan made while a table was almost empty would scan it until the next ANALYZE."""
_READY_SECONDS: Final = 1.0
"""Whoever asks for readiness wants to hear of a slow database, not to wait for it."""
_LAGGING_SECONDS: Final = 10.0
"""Readiness tells of a projector that is further behind than this."""
_NEEDED: Final = newest_revision()
_NOT_MIGRATED: Final = "PostgreSQL: the database must be migrated first: run `taskledger migrate`"


def create_app(settings: Settings, registry: Registry | None = None) -> FastAPI:
    """Starts whether or not the database is there: readiness says what is missing. Raises
    ConfigurationError for a missing DSN or handlers that cannot be loaded."""
    dsn = settings.require_postgres()
    if registry is None:
        registry = load_registry(settings.handlers)
    size = settings.postgres.pool_size
    waiting = size * WAITING_PER_CONNECTION
    pool = make_pool(dsn, name="query-api", size=size, options=_SESSION, max_waiting=waiting)
    model = ReadModel(pool)
    watch = ReadWatch(model, lambda: connect(dsn, name="query-listen"))

    async def fetch(statement: str, parameters: Sequence[Any]) -> list[Sequence[Any]]:
        try:
            return [tuple(row.values()) for row in await model.read(statement, parameters)]
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise SchemaNotReady("the database has not been migrated: run `taskledger migrate`") from error

    encryption = Encryption(settings.encryption, fetch, lambda: connect(dsn, name="query-keys"))
    vault = encryption.vault
    moments = Moments(model, watch)
    secret = settings.query_api.cursor_secret
    signers = Signers(None if secret is None else secret.get_secret_value().encode())
    consistency = Consistency(watch)
    tasks = Tasks(model, watch, consistency, signers, vault)
    feed = LogFeed(model, EventMapper(), vault)
    tail = Tail(feed, lambda: connect(dsn, name="query-tail"))
    encryption.on_erased = tail.forget_texts
    streams = Streams(
        feed,
        tail,
        most=min(settings.query_api.max_streams, settings.http.max_connections // 2),
        heartbeat_seconds=settings.query_api.heartbeat_seconds,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with pool, _running(watch.run, tail.run, encryption.watch):
            yield

    app = FastAPI(
        title="taskledger query API",
        description="Everything that can be asked. Nothing here changes a task.",
        docs_url=None,
        redoc_url=None,
        telemetry=NO_TELEMETRY,
        lifespan=lifespan,
        responses=PROBLEMS,
    )
    install(app, settings.http)
    on_stopping(app, watch.close)
    on_stopping(app, streams.close)
    app.include_router(webhook_routes(Webhooks(model)))
    history = History(model, moments, vault)
    app.include_router(feed_routes(feed, history, streams))
    app.include_router(
        task_routes(
            tasks,
            Past(model, moments, consistency, signers, vault),
            history,
            Explanations(model, history, settings.external_kinds.keys(), vault),
        )
    )
    app.include_router(proof_routes(Proofs(model)))
    app.include_router(
        overview_routes(
            Overview(model, consistency),
            PastStats(model, moments, consistency),
            kinds(registry, settings.external_kinds),
        )
    )
    app.include_router(usage_routes(Usage(ReadModel(pool, projection=PROJECTION))))
    asking = ReadModel(pool, budget_seconds=_READY_SECONDS)
    witness = Witness()

    async def all_missing() -> Sequence[str]:
        return [*await missing(asking, witness), *await encryption.missing()]

    add_health(app, all_missing, lambda: degraded(asking))
    add_metrics(app)
    add_docs(app)
    return app


@asynccontextmanager
async def _running(*loops: Callable[[], Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    tasks = [asyncio.create_task(loop()) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def missing(model: ReadModel, witness: Witness) -> Sequence[str]:
    """Of a database that is there, the migration and the read tables; and whether it is still the same."""
    try:
        mark = witness.mark()
        looked = await model.read(LOOK, mark.parameters)
        witness.check(tuple(looked[0].values()), mark)
        # Whatever an answer needs, of nobody's task: tables of another release may lack some of it.
        await model.fetch(TASK, {"id": UUID(int=0), "tenant": DEFAULT_TENANT})
        rows = await model.read("select version_num from taskledger.alembic_version", {})
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return [_NOT_MIGRATED]
    except (Unavailable, SchemaNotReady, LogRewound) as error:
        return [f"PostgreSQL: {error}"]
    return [] if rows and rows[0]["version_num"] >= _NEEDED else [_NOT_MIGRATED]


async def degraded(model: ReadModel) -> Sequence[str]:
    """A projector that stands or is away takes no API out of service: old answers that say so are better
    than none, and who wrote and must see it asks with `min_position`."""
    try:
        snapshot, rows = await model.fetch(statement("lag"))
    except (Unavailable, SchemaNotReady) as error:
        return [f"PostgreSQL: {error}"]
    head, seconds = int(rows[0]["head"]), float(rows[0]["seconds"] or 0)
    if head < snapshot.checkpoint:
        return ["the read tables are ahead of the log, which was restored: run `taskledger rebuild`"]
    if seconds > _LAGGING_SECONDS:
        behind = head - snapshot.checkpoint
        return [
            f"the read tables are {behind} events and {seconds:.0f} s behind the log: see the projector"
        ]
    return []


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    refuse_wrong_key(settings)
    api = settings.query_api
    serve(
        create_app(settings),
        host=api.host,
        port=api.port,
        setting="TASKLEDGER__QUERY_API__PORT",
        http=settings.http,
    )
