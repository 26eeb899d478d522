"""The log in PostgreSQL, for asyncio: the append function and plain reads."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from events import statements
from events.append import (
    AppendCommand,
    Appended,
    Outcome,
    RecordedEvent,
    first_events,
    outcomes_of,
    recognise_own,
)
from events.append_parameters import append_parameters
from events.connections import sever, unavailable
from events.deadline import after, pauses, remaining, within
from events.errors import LogRewound, SchemaNotReady, StoreUnavailable
from events.ids import as_uuid
from events.witness import LOOK, Witness

Connect = Callable[[], Awaitable[AsyncConnection[TupleRow]]]
Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

READ_BUDGET_SECONDS: Final = 5.0

MAX_ROLLBACKS: Final = 3
"""After as many the server has rolled an append back once more: enough."""

_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError)
_ROLLED_BACK: Final = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
"""Nothing is stored and the connection is good: to be tried again, for a while."""
_NOT_MIGRATED: Final = (
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
)
_REFUSED: Final = (*_ROLLED_BACK, psycopg.errors.DiskFull)


class PostgresLogReader:
    """Reads with a pool it is given; every call has its own deadline."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def read_stream(self, originator_id: UUID) -> list[RecordedEvent]:
        return _events(await self._read(statements.READ_STREAM, (originator_id,)))

    async def read_streams(self, ids: Sequence[UUID]) -> dict[UUID, list[RecordedEvent]]:
        streams: dict[UUID, list[RecordedEvent]] = {}
        for event in _events(await self._read(statements.READ_STREAMS, (list(ids),))):
            streams.setdefault(as_uuid(event.originator_id), []).append(event)
        return streams

    async def read_after(
        self, position: int, *, limit: int, upto: int | None = None
    ) -> list[RecordedEvent]:
        highest = statements.HIGHEST if upto is None else upto
        return _events(await self._read(statements.READ_AFTER, (position, highest, limit)))

    async def head(self) -> int:
        return int((await self._read(statements.HEAD, ()))[0][0])

    async def tag(self) -> str:
        """Read anew each time: a restore draws another."""
        return str((await self._read(statements.TAG, ()))[0][0])

    async def rows(self, statement: str, parameters: Sequence[Any]) -> list[TupleRow]:
        """Of any statement that may run twice. Raises StoreUnavailable, SchemaNotReady."""
        return await self._read(statement, parameters)

    async def _read(
        self, statement: str, parameters: Sequence[Any], deadline: float | None = None
    ) -> list[TupleRow]:
        """Tried until the deadline, since reads can be repeated: after a restart of the server each
        connection of the pool is dead, and it hands them out one by one."""
        if deadline is None:
            deadline = after(READ_BUDGET_SECONDS)
        waits = pauses()
        while True:
            try:
                return await within(deadline, self._fetch(statement, parameters, deadline))
            except _LOST as error:
                await _pause(next(waits), deadline, error)

    async def _fetch(self, statement: str, parameters: Sequence[Any], deadline: float) -> list[TupleRow]:
        try:
            async with self._pool.connection(timeout=remaining(deadline)) as connection:
                cursor = connection.cursor(binary=True)
                await cursor.execute(statement.encode(), parameters, prepare=True)
                return await cursor.fetchall()
        except (PoolTimeout, TooManyRequests) as error:
            raise StoreUnavailable("no database connection came free in time") from error
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise SchemaNotReady("the database has not been migrated") from error


class PostgresLog(PostgresLogReader):
    """Appends over one connection of its own, made anew when it is lost.

    One at a time: the server takes appends one after another anyway, so a second connection would
    only wait there. Callers gather into groups instead: see events.group_commit.
    """

    def __init__(self, pool: Pool, connect: Connect, witness: Witness | None = None) -> None:
        super().__init__(pool)
        self._connect = connect
        self._connection: AsyncConnection[TupleRow] | None = None
        self._turn = asyncio.Lock()
        self._witness = witness or Witness()

    async def append(self, commands: Sequence[AppendCommand], *, deadline: float) -> list[Outcome]:
        if not commands:
            return []
        async with self._turn:
            row, unknown = await self._store(append_parameters(commands), deadline)
            outcomes = outcomes_of(commands, row)
            if unknown:
                outcomes = await self._recognise_own(commands, outcomes, deadline)
            for outcome in outcomes:
                if isinstance(outcome, Appended):
                    self._witness.saw(outcome.last_position, outcome.recorded_at)
            return outcomes

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _store(self, parameters: tuple[Any, ...], deadline: float) -> tuple[TupleRow, bool]:
        """What the function answered, and whether an earlier try of ours may have been stored."""
        waits = pauses()
        unknown = False
        rollbacks = 0
        while True:
            try:
                return await within(deadline, self._call(parameters)), unknown
            except (StoreUnavailable, asyncio.CancelledError):
                self._discard()
                raise
            except _NOT_MIGRATED as error:
                raise SchemaNotReady("the database has not been migrated") from error
            except psycopg.errors.DiskFull as error:
                raise unavailable(error) from error
            except _ROLLED_BACK as error:
                rollbacks += 1
                if rollbacks > MAX_ROLLBACKS:
                    raise StoreUnavailable("the database keeps rolling the append back") from error
                await _pause(next(waits), deadline, error)
            except _LOST as error:
                self._discard()
                unknown = True
                await _pause(next(waits), deadline, error)

    async def _call(self, parameters: tuple[Any, ...]) -> TupleRow:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = await self._connect()
            await self._meet(connection)
        try:
            cursor = connection.cursor(binary=True)
            await cursor.execute(statements.APPEND.encode(), parameters, prepare=True)
            row = await cursor.fetchone()
        except _REFUSED:
            raise
        except (*_LOST, asyncio.CancelledError):
            # Here and not in _discard(): the last to use it closes it, which may be an abandoned task.
            await connection.close()
            raise
        if row is None:
            raise psycopg.OperationalError("append answered nothing")
        return row

    async def _meet(self, connection: AsyncConnection[TupleRow]) -> None:
        """A connection is lost with its server, and it may be another log that answers now."""
        mark = self._witness.mark()
        try:
            row = await (await connection.execute(LOOK.encode(), mark.parameters)).fetchone()
            if row is not None:
                self._witness.check(row, mark)
        except BaseException as error:
            await connection.close()
            if isinstance(error, LogRewound):
                raise StoreUnavailable(str(error)) from error
            raise

    def _discard(self) -> None:
        if self._connection is not None:
            sever(self._connection)
            self._connection = None

    async def _recognise_own(
        self, commands: Sequence[AppendCommand], outcomes: list[Outcome], deadline: float
    ) -> list[Outcome]:
        suspects = first_events(commands, outcomes)
        if not suspects:
            return outcomes
        ids, versions = [e.originator_id for e in suspects], [e.originator_version for e in suspects]
        rows = await self._read(statements.FIND_EVENTS, (ids, versions), deadline)
        return recognise_own(commands, outcomes, _events(rows))


def _events(rows: Sequence[TupleRow]) -> list[RecordedEvent]:
    return [RecordedEvent.of_row(row) for row in rows]


async def _pause(seconds: float, deadline: float, error: psycopg.Error) -> None:
    """Before the next try. Raises StoreUnavailable where there is no time for one."""
    if remaining(deadline) <= seconds:
        raise unavailable(error) from error
    await asyncio.sleep(seconds)
