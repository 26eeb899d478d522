"""One leader at a time: an advisory lock on a connection of its own.

The server ends a session that is idle for IDLE_SECONDS, and the leader pings each second: so one that
is frozen (SIGSTOP, a stalled machine) loses the lock without doing anything. When it wakes up it may act
for a moment before it notices, so whatever a leader writes must be fenced besides: by the expected
version of a task, or by the compare-and-set of a checkpoint or position.

A transaction pooler between us and the server would break this: it needs a session.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from events.connections import answered
from taskledger.postgres import SESSION, connect
from taskledger.telemetry import get_logger

Connect = Callable[[], Awaitable[AsyncConnection[TupleRow]]]

Waiting = Callable[[str, bool], None]
"""Told what acquire() waits for, once per reason, and whether it is the database that is away."""

IDLE_SECONDS: Final = 5
RETRY_SECONDS: Final = 1.0
PING_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 3.0
"""A ping that takes longer counts as lost: with PING_SECONDS it stays below IDLE_SECONDS."""

_TRY: Final = b"select pg_try_advisory_lock(%s)"
_PING: Final = b"select 1"

_logger = get_logger(__name__)


def leader_connect(dsn: str, *, name: str) -> Connect:
    """What a Leader needs: sessions that the server ends when nothing is heard from them."""
    options = f"{SESSION} -c idle_session_timeout={IDLE_SECONDS}s"
    return lambda: connect(dsn, name=f"{name}-leader", options=options)


class Leader:
    """Campaigns for the lock `key`; between acquire() and the moment `lost` is set it leads."""

    def __init__(self, connect: Connect, key: int, *, waiting: Waiting | None = None) -> None:
        self._connect = connect
        self._key = key
        self._waiting = waiting
        self._told: str | None = None
        self._connection: AsyncConnection[TupleRow] | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._released = asyncio.Event()
        self.lost = asyncio.Event()

    async def acquire(self, stop: asyncio.Event) -> bool:
        """Waits until we lead (True) or `stop` is set (False). Survives a database that is away."""
        while not stop.is_set():
            try:
                if await self._try():
                    self._pinging = asyncio.create_task(self._ping(), name="leader-ping")
                    return True
                self._tell("another process leads", database_away=False)
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as error:
                await self._drop()
                self._tell(f"PostgreSQL does not answer ({type(error).__name__})", database_away=True)
            with contextlib.suppress(TimeoutError):
                # Jitter: standbys that lost their leader together do not come together.
                await asyncio.wait_for(stop.wait(), RETRY_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311
        await self._drop()
        return False

    async def release(self) -> None:
        """Gives the lock up by ending the session. `lost` stays as it was."""
        self._released.set()
        if self._pinging is not None:
            await asyncio.wait({self._pinging})
            self._pinging = None
        await self._drop()

    async def _try(self) -> bool:
        if self._connection is None:
            self._connection = await self._connect()
        row = await (await self._answer(self._connection, _TRY, (self._key,))).fetchone()
        return row is not None and bool(row[0])

    async def _ping(self) -> None:
        connection = self._connection
        while connection is not None and not self._released.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), PING_SECONDS)
            if self._released.is_set():
                return
            try:
                await self._answer(connection, _PING, ())
            except (psycopg.Error, OSError) as error:
                _logger.warning("leadership lost", reason=type(error).__name__)
                self.lost.set()
                return

    async def _answer(
        self, connection: AsyncConnection[TupleRow], statement: bytes, parameters: tuple[object, ...]
    ) -> psycopg.AsyncCursor[TupleRow]:
        return await answered(connection, statement, parameters, seconds=ANSWER_SECONDS)

    async def _drop(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    def _tell(self, reason: str, *, database_away: bool) -> None:
        if reason != self._told and self._waiting is not None:
            self._waiting(reason, database_away)
        self._told = reason


@contextlib.asynccontextmanager
async def leadership(
    connect: Connect, key: int, stop: asyncio.Event, *, waiting: Waiting | None = None
) -> AsyncGenerator[Leader | None]:
    """Waits for the lock and gives it up at the end; None if `stop` came first."""
    leader = Leader(connect, key, waiting=waiting)
    try:
        yield leader if await leader.acquire(stop) else None
    finally:
        await leader.release()
