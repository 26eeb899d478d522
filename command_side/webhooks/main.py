"""Composition root of `taskledger webhooks`: one leader follows and delivers, the others stand by."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import psycopg
import uvloop

from command_side.errors import WebhookNotFound
from command_side.listener import listen
from command_side.service import Origin
from command_side.terms import Outage, TermOver, end_of_term, until_told_to_stop, wait_for_schema
from command_side.webhooks.delivery import LOADED_AT_ONCE, Parts
from command_side.webhooks.endpoint import EndpointLoop, EndpointLoops
from command_side.webhooks.follower import NAME, Follower
from command_side.webhooks.messages import Shape
from command_side.webhooks.outcomes import Policy
from command_side.webhooks.resolver import Resolve, SystemResolver, guard_of
from command_side.webhooks.sender import Sender, tls
from command_side.webhooks.service import WebhookService
from command_side.webhooks.store import Kept, WebhookStore
from command_side.webhooks.webhook import DisableWebhook
from events.codec import EventMapper
from events.errors import (
    CheckpointConflict,
    ConcurrencyConflict,
    ConfigurationError,
    LogRewound,
    SchemaNotReady,
    Unavailable,
)
from events.group_commit import GroupCommit
from events.postgres_log import PostgresLog
from events.task_events import RetryPolicy
from events.tracking import check_log
from events.webhook_events import DisabledCause, WebhookState
from taskledger.health import Health, Heartbeat, health_server
from taskledger.leader import Leader, leader_connect, leadership
from taskledger.metrics import CHECKPOINT, HALTED, LAG, WEBHOOKS_DISABLED
from taskledger.postgres import connect, connect_sync, make_pool
from taskledger.settings import Settings
from taskledger.telemetry import get_logger

LOCK: Final = 7311461898386

_logger = get_logger(__name__)


@dataclass(slots=True)
class WebhooksStatus:
    """Read by health. A standby misses nothing."""

    waiting_for: dict[str, str] = field(default_factory=dict[str, str])

    def missing(self) -> list[str]:
        return [f"{what}: {why}" for what, why in list(self.waiting_for.items())]


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT. Raises ConfigurationError for a setting it cannot work with."""
    status, heartbeat = WebhooksStatus(), Heartbeat()

    def health() -> Health:
        return Health(live=heartbeat.alive(), missing=status.missing())

    with health_server(settings.health, health):
        uvloop.run(until_told_to_stop(lambda stop: serve(settings, stop, status), heartbeat))


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    status: WebhooksStatus | None = None,
    resolve: Resolve | None = None,
) -> None:
    """Leads, or stands by to lead, until `stop` is set. Survives PostgreSQL being away. Raises
    ConfigurationError when a setting is missing."""
    status = status or WebhooksStatus()
    dsn, masters = settings.require_postgres(), settings.webhook_secrets()
    if not masters:
        raise ConfigurationError(
            "TASKLEDGER__WEBHOOKS__SECRET_FILE is not set: webhooks want a secret to sign with"
        )
    context = tls(settings.webhooks.ca_file)
    if not await wait_for_schema(dsn, stop, status, name=NAME):
        return

    def waiting(reason: str, database_away: bool) -> None:
        if database_away:
            status.waiting_for["postgres"] = reason
        else:
            status.waiting_for.pop("postgres", None)
        _logger.info("standing by", reason=reason)

    resolver = SystemResolver()
    guard = guard_of(settings.webhooks, resolve or resolver)
    sender = Sender(guard, context, timeout_seconds=settings.webhooks.timeout_seconds)
    try:
        async with _process(dsn, settings, masters, sender, status) as process:
            while not stop.is_set():
                async with leadership(
                    leader_connect(dsn, name=NAME), LOCK, stop, waiting=waiting
                ) as leader:
                    if leader is not None:
                        status.waiting_for.pop("postgres", None)
                        await _lead(process, leader, stop)
    finally:
        await sender.close()
        resolver.close()


@dataclass(slots=True)
class _Process:
    """What one process has, whether it leads or not."""

    dsn: str
    store: WebhookStore
    log: PostgresLog
    service: WebhookService
    mapper: EventMapper
    parts: Parts
    status: WebhooksStatus
    tag: str = ""


@contextlib.asynccontextmanager
async def _process(
    dsn: str, settings: Settings, masters: Sequence[bytes], sender: Sender, status: WebhooksStatus
) -> AsyncGenerator[_Process]:
    hooks, mapper = settings.webhooks, EventMapper()
    async with make_pool(dsn, name=NAME, size=settings.postgres.pool_size) as pool:
        log = PostgresLog(pool, lambda: connect(dsn, name=f"{NAME}-append"))
        commits = GroupCommit(log)
        parts = Parts(
            log=log,
            mapper=mapper,
            sender=sender,
            masters=masters,
            policy=Policy(
                retry=RetryPolicy(
                    base_seconds=hooks.retry_base_seconds, cap_seconds=hooks.retry_cap_seconds
                ),
                max_attempts=hooks.max_attempts,
                disable_after_seconds=hooks.disable_after_hours * 3600,
            ),
            shape=Shape(f"{settings.query_api.url}/tasks", hooks.max_result_bytes),
            tag=lambda: process.tag,
            loading=asyncio.Semaphore(LOADED_AT_ONCE),
            concurrency=hooks.concurrency,
        )
        service = WebhookService(log, commits, mapper)
        process = _Process(dsn, WebhookStore(pool), log, service, mapper, parts, status)
        try:
            yield process
        finally:
            await commits.drain()
            await log.close()


async def _lead(process: _Process, leader: Leader, stop: asyncio.Event) -> None:
    """One term of leadership. Returns when it is over for whatever reason; defects are raised."""
    _logger.info("leading")
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(end_of_term(leader, stop), name="term")
            group.create_task(_work(process, group), name="work")
    except* TermOver:
        pass
    except* CheckpointConflict as conflict:
        _logger.warning("another process leads", reason=str(conflict.exceptions[0]))
    except* LogRewound as rewound:
        _logger.warning("the log is not followed", reason=str(rewound.exceptions[0]))
    finally:
        process.status.waiting_for.clear()
        for gauge in (CHECKPOINT, LAG, HALTED):
            gauge.clear()
        _logger.info("no longer leading")


async def _work(process: _Process, group: asyncio.TaskGroup) -> None:
    process.tag = await _take_up(process)
    wake = asyncio.Event()

    def begin(kept: Kept) -> tuple[EndpointLoop, asyncio.Task[None]]:
        database = Outage("postgres", process.status)
        loop = EndpointLoop(kept, process.store, process.parts, partial(_disable, process), database)
        return loop, group.create_task(loop.run(), name=f"webhook-{kept.state.id}")

    follower = Follower(
        log=process.log,
        store=process.store,
        mapper=process.mapper,
        tag=process.tag,
        endpoints=EndpointLoops(begin),
        status=process.status,
        wake=wake,
        listen=_Listening(process.dsn, group, wake).set,
    )
    await follower.run()


async def _take_up(process: _Process) -> str:
    """The log's tag; waits for a database that answers and a log that can be followed."""
    database, log = Outage("postgres", process.status), Outage("log", process.status)
    while True:
        try:
            tag = await process.store.check_log()
            await asyncio.to_thread(_check_log, process.dsn)
        except (Unavailable, SchemaNotReady, psycopg.OperationalError) as error:
            known = isinstance(error, Unavailable | SchemaNotReady)
            await asyncio.sleep(database.goes_on(str(error) if known else "PostgreSQL does not answer"))
        except LogRewound as error:
            await asyncio.sleep(log.goes_on(str(error)))
        else:
            database.is_over()
            log.is_over()
            return tag


def _check_log(dsn: str) -> None:
    with connect_sync(dsn, name=NAME) as connection:
        check_log(connection, NAME)


async def _disable(process: _Process, webhook: WebhookState, cause: DisabledCause) -> None:
    # Deleted meanwhile, or changed over and over: the next failure comes here again.
    with contextlib.suppress(WebhookNotFound, ConcurrencyConflict):
        await process.service.execute(webhook.id, DisableWebhook(cause), Origin(tenant=webhook.tenant))
        WEBHOOKS_DISABLED.inc()


class _Listening:
    """For new events, while there is a webhook: each would wake the process for nothing."""

    def __init__(self, dsn: str, group: asyncio.TaskGroup, wake: asyncio.Event) -> None:
        self._dsn = dsn
        self._group = group
        self._wake = wake
        self._task: asyncio.Task[None] | None = None

    def set(self, wanted: bool) -> None:
        if wanted and self._task is None:
            listening = listen(lambda: connect(self._dsn, name=f"{NAME}-listen"), self._heard)
            self._task = self._group.create_task(listening, name="listener")
        elif not wanted and self._task is not None:
            self._task.cancel()
            self._task = None

    def _heard(self, _: str | None) -> None:
        self._wake.set()
