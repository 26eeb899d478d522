"""The worker's composition root."""

import asyncio
import os
import platform
import signal
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import uvloop
from psycopg import Connection
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from command_side.clock import DatabaseClock
from command_side.service import CommandService
from command_side.worker.attempts import Attempts
from command_side.worker.consumer import Consumer
from command_side.worker.executor import Executor
from command_side.worker.finish import Finisher
from command_side.worker.intake import Intake
from command_side.worker.leases import Lease, Renewal, Renewed
from command_side.worker.notes import Keys
from command_side.worker.outage import Outage
from command_side.worker.preflight import wait_for_database, wait_for_redis
from command_side.worker.processes import Children
from command_side.worker.runner import Runner
from command_side.worker.starter import Starter
from command_side.worker.unless import unless
from events.codec import EventMapper
from events.group_commit import GroupCommit
from events.postgres_log import PostgresLog
from taskledger.encryption import Encryption, refuse_wrong_key
from taskledger.health import Health, Heartbeat, health_server
from taskledger.lifecycle import EXIT_INTERRUPTED, EXIT_REPLACE, spare_collector
from taskledger.postgres import KEYED, connect, connect_sync, make_pool
from taskledger.redis import make_redis
from taskledger.registry import Registry, load_registry
from taskledger.settings import Settings
from taskledger.telemetry import get_logger

_logger = get_logger(__name__)

FINISH_SECONDS: Final = 10.0
"""At shutdown, for outcomes to reach the log after the last handler has ended."""
_LEASE_STOP_SECONDS: Final = 5.0
_TICK_SECONDS: Final = 0.5


class Worker:
    """One worker process. Every instance is a new holder: leases of an earlier one are not its own.

    Raises ConfigurationError, from the constructor or run(), for what starting again cannot cure.
    """

    def __init__(self, settings: Settings, registry: Registry | None = None) -> None:
        self._settings = settings
        self._dsn = settings.require_postgres()
        self._redis_url = settings.require_redis()
        self._registry = registry or load_registry(settings.handlers)
        self.holder = str(uuid4())
        self._started_at = datetime.now(UTC)
        self._heartbeat = Heartbeat()
        self._attempts = Attempts()
        self._clock = DatabaseClock()
        self._database = Outage("PostgreSQL")
        self._renewing = Outage("PostgreSQL (leases)")
        self._redis = Outage("Redis")
        self._starter: Starter | None = None
        self._finisher: Finisher | None = None
        self._runner: Runner | None = None
        self._renewal: Renewal | None = None
        self._draining = False
        self._worn_out = False

    def health(self) -> Health:
        """Safe to call from any thread."""
        waiting = [
            f"{o.what}: {o.reason}" for o in (self._database, self._renewing, self._redis) if o.reason
        ]
        if not waiting and (self._renewal is None or not self._renewal.fresh):
            waiting = ["the lease has not been renewed"]
        return Health(
            live=self._heartbeat.alive(), missing=[*waiting, *(["draining"] if self._draining else [])]
        )

    def status(self) -> dict[str, Any]:
        """Figures for metrics and tests. Safe to call from any thread."""
        health = self.health()
        return {
            "ready": health.live and not health.missing,
            "live": health.live,
            "waiting_for": list(health.missing),
            "holder": self.holder,
            "running": self._runner.running if self._runner else 0,
            "stuck": self._runner.stuck if self._runner else 0,
            "entries": dict(self._starter.counts) if self._starter else {},
            "outcomes": dict(self._finisher.counts) if self._finisher else {},
        }

    async def run(self, stop: asyncio.Event) -> int:
        """Works until `stop` is set, then drains. Returns the exit code: 0, or 75 when half of the
        slots are taken by handlers that would not stop, and the process wants to be replaced."""
        ticking = asyncio.create_task(self._tick(), name="tick")
        try:
            async with AsyncExitStack() as stack:
                redis = make_redis(self._redis_url, name="worker")
                stack.push_async_callback(redis.aclose)
                if not await self._wait_for_servers(redis, stop):
                    return 0
                await self._work(stack, redis, stop)
        finally:
            ticking.cancel()
        return EXIT_REPLACE if self._worn_out else 0

    async def _wait_for_servers(self, redis: Redis, stop: asyncio.Event) -> bool:
        """False if the process is stopped meanwhile."""
        await unless(stop, wait_for_database(self._connect_sync, self._clock, self._database))
        if not stop.is_set():
            await asyncio.to_thread(refuse_wrong_key, self._settings)
        await unless(stop, wait_for_redis(redis, self._redis))
        return not stop.is_set()

    async def _work(self, stack: AsyncExitStack, redis: Redis, stop: asyncio.Event) -> None:
        settings = self._settings
        pool = await stack.enter_async_context(
            make_pool(self._dsn, name="worker", size=settings.postgres.pool_size)
        )
        log = PostgresLog(pool, lambda: connect(self._dsn, name="worker-append"))
        stack.push_async_callback(log.close)
        commits = GroupCommit(log)
        encryption = Encryption(
            settings.encryption, log.rows, lambda: connect(self._dsn, name="worker-keys")
        )
        listening = asyncio.create_task(encryption.watch(), name="key-watch")
        stack.callback(listening.cancel)
        service = CommandService(log, commits, EventMapper(), self._clock, encryption.vault)
        children = Children(self._registry.modules)
        stack.push_async_callback(children.close)
        if any(kind.execution == "process" for kind in self._registry.kinds.values()):
            children.prepare()

        def wear_out() -> None:
            _logger.error("half of the slots are taken by handlers that do not stop: asking to be replaced")
            self._worn_out = True
            stop.set()

        self._finisher = Finisher(service, self._database)
        runner = self._runner = Runner(
            Executor(children),
            self._finisher,
            self._attempts,
            concurrency=settings.worker.concurrency,
            on_worn_out=wear_out,
        )
        self._starter = Starter(
            service, self._registry.kinds, self._attempts, holder=self.holder, worker=settings.worker.name
        )
        renewal = self._renewal = self._make_renewal(encryption.keys_now)
        intake = Intake(
            Consumer(
                redis, self.holder, settings.worker.queues, self._registry.kinds, settings.lease_seconds
            ),
            self._starter,
            runner,
            renewal,
            queues=settings.worker.queues,
            redis_outage=self._redis,
            database_outage=self._database,
        )
        renewal.start(intake.pairs, lambda found: self._observe(intake, found))
        _logger.info("worker started", holder=self.holder, queues=settings.worker.queues)
        try:
            await intake.run(stop)
        finally:
            self._draining = True
            await self._drain(runner)
            await commits.drain()
            await intake.leave()
            await renewal.stop(_LEASE_STOP_SECONDS)

    async def _drain(self, runner: Runner) -> None:
        """Lets handlers end, hands the rest back, and gives outcomes time to be stored."""
        _logger.info("draining", running=runner.running)
        if await _within(self._settings.worker.drain_seconds, runner):
            return
        runner.hand_back()
        if not await _within(FINISH_SECONDS, runner):
            _logger.warning("outcomes not stored", attempts=runner.running)
            runner.abandon()

    def _make_renewal(self, keys: Keys) -> Renewal:
        lease_seconds = self._settings.lease_seconds
        return Renewal(
            Lease(self.holder, lease_seconds, self._info, keys),
            self._attempts,
            connect=self._connect_sync,
            lease_seconds=lease_seconds,
            heartbeat=self._heartbeat,
            outage=self._renewing,
        )

    def _observe(self, intake: Intake, found: Renewed) -> None:
        self._clock.observe(found.database_time)
        self._attempts.observe(found.later)
        intake.observe(found)

    def _connect_sync(self) -> Connection[TupleRow]:
        # Plans made while the log is empty are kept for the connection: they must not scan it for ever.
        return connect_sync(self._dsn, name="worker-lease", options=KEYED)

    def _info(self) -> dict[str, Any]:
        """What people see of a live holder. Called by the renewal thread."""
        settings = self._settings.worker
        return {
            "worker": settings.name,
            "host": platform.node(),
            "pid": os.getpid(),
            "queues": list(settings.queues),
            "kinds": sorted(self._registry.kinds),
            "started_at": self._started_at.isoformat(),
            "concurrency": settings.concurrency,
            "running": len(self._attempts.running()),
        }

    async def _tick(self) -> None:
        while True:
            self._heartbeat.tick()
            await asyncio.sleep(_TICK_SECONDS)


async def _within(seconds: float, runner: Runner) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await runner.wait_idle()
    except TimeoutError:
        return False
    return True


async def serve(settings: Settings, stop: asyncio.Event) -> int:
    """As Worker.run(), with the health server where the settings name a port."""
    worker = Worker(settings)
    with health_server(settings.health, worker.health):
        return await worker.run(stop)


def run(settings: Settings) -> int:
    """The process. SIGTERM or SIGINT drains; a second one ends it at once, and the sweeper takes over.

    Returns the exit code; the caller leaves with it at once, as handlers may still block threads.
    """

    async def main() -> int:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def on_signal() -> None:
            if stop.is_set():
                os._exit(EXIT_INTERRUPTED)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        return await serve(settings, stop)

    spare_collector()
    return uvloop.run(main())
