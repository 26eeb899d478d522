"""Composition root of `taskledger dispatcher`: one leader relays and sweeps, the others stand by."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import uvloop
from redis.asyncio import Redis

from command_side.clock import DatabaseClock
from command_side.dispatcher.holes import HoleFinder
from command_side.dispatcher.relay import Relay, take_up
from command_side.dispatcher.status import DispatcherStatus
from command_side.dispatcher.store import OutstandingStore
from command_side.dispatcher.sweeper import Pace, Sweeper
from command_side.dispatcher.told import Told
from command_side.listener import listen
from command_side.service import CommandService
from command_side.terms import Outage, TermOver, end_of_term, until_told_to_stop, wait_for_schema
from events.codec import EventMapper
from events.errors import CheckpointConflict, LogRewound, SchemaNotReady, Unavailable
from events.group_commit import GroupCommit
from events.postgres_log import PostgresLog
from taskledger.health import Health, Heartbeat, health_server
from taskledger.leader import Leader, leader_connect, leadership
from taskledger.lifecycle import spare_collector
from taskledger.metrics import CHECKPOINT, LAG
from taskledger.postgres import connect, make_pool
from taskledger.redis import make_redis
from taskledger.settings import Settings
from taskledger.telemetry import get_logger

LOCK: Final = 7311461898373
NAME: Final = "dispatcher"

_logger = get_logger(__name__)


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    status, heartbeat = DispatcherStatus(), Heartbeat()

    def health() -> Health:
        return Health(live=heartbeat.alive(), missing=status.missing())

    spare_collector()
    with health_server(settings.health, health):
        uvloop.run(until_told_to_stop(lambda stop: serve(settings, stop, status), heartbeat))


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    status: DispatcherStatus | None = None,
    pace: Pace | None = None,
) -> None:
    """Leads, or stands by to lead, until `stop` is set. Survives PostgreSQL and Redis being away, at the
    start and later. Raises ConfigurationError when a setting is missing."""
    status = status or DispatcherStatus()
    dsn, redis_url = settings.require_postgres(), settings.require_redis()
    pace = pace or Pace(lease=settings.lease_seconds, hole_patience=settings.lease_seconds)
    if not await wait_for_schema(dsn, stop, status, name=NAME):
        return

    def waiting(reason: str, database_away: bool) -> None:
        if database_away:
            status.waiting_for["postgres"] = reason
        else:
            status.waiting_for.pop("postgres", None)
        _logger.info("standing by", reason=reason)

    async with _parts(dsn, redis_url, settings.postgres.pool_size, pace, status) as parts:
        while not stop.is_set():
            async with leadership(leader_connect(dsn, name=NAME), LOCK, stop, waiting=waiting) as leader:
                if leader is not None:
                    status.waiting_for.pop("postgres", None)
                    await _lead(parts, leader, stop)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What one process has, whether it leads or not."""

    dsn: str
    store: OutstandingStore
    log: PostgresLog
    redis: Redis
    mapper: EventMapper
    clock: DatabaseClock
    commands: CommandService
    pace: Pace
    status: DispatcherStatus


@contextlib.asynccontextmanager
async def _parts(
    dsn: str, redis_url: str, pool_size: int, pace: Pace, status: DispatcherStatus
) -> AsyncGenerator[_Parts]:
    mapper, clock = EventMapper(), DatabaseClock()
    async with make_pool(dsn, name=NAME, size=pool_size) as pool:
        log = PostgresLog(pool, lambda: connect(dsn, name=f"{NAME}-append"))
        commits = GroupCommit(log)
        commands = CommandService(log, commits, mapper, clock, vault=None)
        redis = make_redis(redis_url, name=NAME)
        try:
            yield _Parts(dsn, OutstandingStore(pool), log, redis, mapper, clock, commands, pace, status)
        finally:
            await commits.drain()
            await log.close()
            await redis.aclose()


async def _lead(parts: _Parts, leader: Leader, stop: asyncio.Event) -> None:
    """One term of leadership. Returns when it is over for whatever reason; defects are raised."""
    status = parts.status
    status.leader = True
    _logger.info("leading")
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(end_of_term(leader, stop), name="term")
            group.create_task(_work(parts, group), name="work")
    except* TermOver:
        pass
    except* CheckpointConflict as conflict:
        _logger.warning("another dispatcher leads", reason=str(conflict.exceptions[0]))
    except* LogRewound as rewound:
        _logger.warning("the log is not followed", reason=str(rewound.exceptions[0]))
    finally:
        status.leader = False
        status.waiting_for.clear()
        CHECKPOINT.clear()
        LAG.clear()
        _logger.info("no longer leading")


async def _work(parts: _Parts, group: asyncio.TaskGroup) -> None:
    relay, sweeper, told = await _take_up(parts)
    group.create_task(
        listen(lambda: connect(parts.dsn, name=f"{NAME}-listen"), told.heard), name="listener"
    )
    group.create_task(relay.run(), name="relay")
    # Until then the rows tell of the past, and most of what they ask for has been done.
    await relay.live.wait()
    await sweeper.run()


async def _take_up(parts: _Parts) -> tuple[Relay, Sweeper, Told]:
    """Waits for a database that answers and a log that can be followed."""
    database, log = Outage("postgres", parts.status), Outage("log", parts.status)
    while True:
        try:
            identity = await take_up(parts.store)
            parts.clock.observe(await parts.store.clock())
        except (Unavailable, SchemaNotReady) as error:
            await asyncio.sleep(database.goes_on(str(error)))
        except LogRewound as error:
            await asyncio.sleep(log.goes_on(str(error)))
        else:
            break
    database.is_over()
    log.is_over()
    told = Told()
    relay = Relay(
        log=parts.log,
        store=parts.store,
        redis=parts.redis,
        mapper=parts.mapper,
        identity=identity,
        status=parts.status,
        told=told,
    )
    holes = HoleFinder(parts.store, parts.redis, identity.tag, parts.pace.hole_patience)
    sweeper = Sweeper(
        store=parts.store,
        commands=parts.commands,
        clock=parts.clock,
        holes=holes,
        pace=parts.pace,
        status=parts.status,
        checkpoint=lambda: relay.checkpoint,
        want=relay.want,
    )
    return relay, sweeper, told
