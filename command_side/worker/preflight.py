"""What must be true before a worker takes work: a migrated database, and a Redis that evicts nothing."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow
from redis.asyncio import Redis
from redis.exceptions import RedisError

from command_side.broker import check_broker
from command_side.clock import DatabaseClock
from command_side.worker.outage import Outage
from events.errors import SchemaNotReady
from events.migrate import check_schema

_PAUSE_SECONDS: Final = 0.5


async def wait_for_database(
    connect: Callable[[], Connection[TupleRow]], clock: DatabaseClock, outage: Outage
) -> None:
    """Until it can be reached and has been migrated; reads its clock."""
    while True:
        try:
            clock.observe(await asyncio.to_thread(_check, connect))
        except (psycopg.OperationalError, SchemaNotReady) as error:
            outage.goes_on(" ".join(str(error).split()))
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            outage.over()
            return


def _check(connect: Callable[[], Connection[TupleRow]]) -> Any:
    with connect() as connection:
        check_schema(connection)
        row = connection.execute("select clock_timestamp()").fetchone()
        if row is None:
            raise psycopg.OperationalError("the clock answered nothing")
        return row[0]


async def wait_for_redis(redis: Redis, outage: Outage) -> None:
    """Until it answers. Raises ConfigurationError if it is not fit."""
    while True:
        try:
            await check_broker(redis)
        except (RedisError, OSError) as error:
            outage.goes_on(str(error) or type(error).__name__)
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            outage.over()
            return
