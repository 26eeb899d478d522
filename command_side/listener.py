"""Hears of new events by NOTIFY. A hint only: who follows the log polls too, so nothing depends on this."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from events.connections import answered
from events.deadline import pauses
from events.statements import LOG_CHANNEL
from taskledger.telemetry import get_logger

CHECK_SECONDS: Final = 5.0
"""After this long without a word the connection is asked whether it still lives: a session that stands
still, or a network that swallows everything, closes no connection."""
_ANSWER_SECONDS: Final = 3.0

_logger = get_logger(__name__)


async def listen(
    connect: Callable[[], Awaitable[AsyncConnection[TupleRow]]], heard: Callable[[str | None], None]
) -> None:
    """Passes on the payload of each notification, and None after each new connection, since some may have
    been missed. Runs until it is cancelled; a database that is away is somebody else's line in the log."""
    waits = pauses()
    while True:
        try:
            async with await connect() as connection:
                await answered(connection, f"listen {LOG_CHANNEL}".encode(), seconds=_ANSWER_SECONDS)
                heard(None)
                waits = pauses()
                while True:
                    async for notification in connection.notifies(timeout=CHECK_SECONDS):
                        heard(notification.payload)
                    await answered(connection, b"select 1", seconds=_ANSWER_SECONDS)
        except (psycopg.Error, OSError) as error:
            _logger.debug("listener lost", reason=type(error).__name__)
            await asyncio.sleep(next(waits))
