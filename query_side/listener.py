"""Hears of news: one connection that listens, and a look once a second all the same."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from events.connections import answered
from taskledger.telemetry import get_logger

POLL_SECONDS: Final = 1.0
"""NOTIFY is a hint: a notification can be lost without a sign, with the connection or in a pooler."""
CHECK_SECONDS: Final = 5.0
"""After this long without a word the connection is asked whether it still lives."""
_ANSWER_SECONDS: Final = 3.0
_MAX_PAUSE_SECONDS: Final = 2.0

Connect = Callable[[], Awaitable[AsyncConnection[TupleRow]]]
Look = Callable[[str], Awaitable[None]]
"""Called with the last notification's text, or "" where there is none. It meets its own errors."""

_logger = get_logger(__name__)


class Listener:
    """Calls `look` after each connect, after notifications (once for all that came meanwhile) and every
    POLL_SECONDS; with `wanted`, only while that is set, and has no connection otherwise."""

    def __init__(
        self, connect: Connect, channel: str, look: Look, *, wanted: asyncio.Event | None = None
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._look = look
        self._wanted = wanted
        self.hearing = False
        """Whether a notification sent now would be heard."""

    async def run(self) -> None:
        """Until cancelled. Without the database it tries again."""
        pause = 0.1
        while True:
            if self._wanted is not None:
                await self._wanted.wait()
            try:
                connection = await self._connect()
                async with connection:
                    await answered(connection, f"listen {self._channel}".encode(), seconds=_ANSWER_SECONDS)
                    pause = 0.1
                    await self._follow(connection)
            except (psycopg.Error, OSError) as error:
                _logger.debug("listening again", channel=self._channel, reason=type(error).__name__)
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311  jitter
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def _follow(self, connection: AsyncConnection[TupleRow]) -> None:
        heard, text = time.monotonic(), ""
        try:
            while self._wanted is None or self._wanted.is_set():
                await self._look(text)
                self.hearing, text = True, ""
                async for notification in connection.notifies(timeout=POLL_SECONDS, stop_after=1):
                    heard, text = time.monotonic(), notification.payload
                if time.monotonic() - heard > CHECK_SECONDS:
                    await answered(connection, b"select 1", seconds=_ANSWER_SECONDS)
                    heard = time.monotonic()
        finally:
            self.hearing = False
