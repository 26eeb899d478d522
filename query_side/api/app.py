"""`taskledger query-api`: puts the read side together."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from fastapi import FastAPI

from events.errors import SchemaNotReady, Unavailable
from query_side.api.overview_routes import overview_routes
from query_side.api.task_routes import task_routes
from query_side.history import History
from query_side.overview import Overview, kinds
from query_side.read_model import ReadModel
from query_side.tasks import Tasks
from query_side.watch import ReadWatch
from taskledger.http import PROBLEMS, add_docs, add_health, install, on_stopping, serve
from taskledger.postgres import SESSION, connect, make_pool
from taskledger.registry import Registry, load_registry
from taskledger.settings import Settings

_SESSION: Final = f"{SESSION} -c enable_seqscan=off -c default_transaction_read_only=on"
"""A plan made while a table was almost empty would scan it until the next ANALYZE."""
_READY_SECONDS: Final = 1.0
"""Whoever asks for readiness wants to hear of a slow database, not to wait for it."""


def create_app(settings: Settings, registry: Registry | None = None) -> FastAPI:
    """Starts whether or not the database is there: readiness says what is missing. Raises
    ConfigurationError for a missing DSN or handlers that cannot be loaded."""
    dsn = settings.require_postgres()
    if registry is None:
        registry = load_registry(settings.handlers)
    pool = make_pool(dsn, name="query-api", size=settings.postgres.pool_size, options=_SESSION)
    model = ReadModel(pool)
    watch = ReadWatch(model, lambda: connect(dsn, name="query-listen"))
    secret = settings.query_api.cursor_secret
    tasks = Tasks(model, watch, None if secret is None else secret.get_secret_value().encode())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with pool:
            watching = asyncio.create_task(watch.run(), name="read-watch")
            try:
                yield
            finally:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching

    app = FastAPI(
        title="taskledger query API",
        description="Everything that can be asked. Nothing here changes a task.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=PROBLEMS,
    )
    install(app)
    on_stopping(app, watch.close)
    app.include_router(task_routes(tasks, History(model)))
    app.include_router(overview_routes(Overview(model), kinds(registry, settings.external_kinds)))
    add_health(app, _readiness(ReadModel(pool, budget_seconds=_READY_SECONDS)))
    add_docs(app)
    return app


def _readiness(model: ReadModel) -> Callable[[], Awaitable[Sequence[str]]]:
    async def missing() -> Sequence[str]:
        try:
            await model.fetch("select true as present")
        except (Unavailable, SchemaNotReady) as error:
            return [f"PostgreSQL: {error}"]
        return []

    return missing


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    api = settings.query_api
    serve(create_app(settings), host=api.host, port=api.port, setting="TASKLEDGER__QUERY_API__PORT")
