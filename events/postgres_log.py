"""The log in PostgreSQL, for asyncio: the append function and plain reads."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from events import statements
from events.append import (
    AppendCommand,
    Outcome,
    RecordedEvent,
    append_parameters,
    first_events,
    outcomes_of,
    recognise_own,
)
from events.connections import sever
from events.deadline import after, pauses, remaining, within
from events.errors import SchemaNotReady, StoreUnavailable
from events.ids import as_uuid

Connect = Callable[[], Awaitable[AsyncConnection[TupleRow]]]
Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

READ_BUDGET_SECONDS: Final = 5.0

_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError)


class PostgresLogReader:
    """Reads with a pool it is given; every call has its own deadline."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._tag: str | None = None

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
        if self._tag is None:
            self._tag = str((await self._read(statements.TAG, ()))[0][0])
        return self._tag

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
                pause = next(waits)
                if remaining(deadline) <= pause:
                    raise StoreUnavailable("the database cannot be reached") from error
                await asyncio.sleep(pause)

    async def _fetch(self, statement: str, parameters: Sequence[Any], deadline: float) -> list[TupleRow]:
        try:
            async with self._pool.connection(timeout=remaining(deadline)) as connection:
                cursor = connection.cursor(binary=True)
                await cursor.execute(statement.encode(), parameters, prepare=True)
                return await cursor.fetchall()
        except PoolTimeout as error:
            raise StoreUnavailable("no database connection came free in time") from error
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise SchemaNotReady("the database has not been migrated") from error


class PostgresLog(PostgresLogReader):
    """Appends over one connection of its own, made anew when it is lost.

    One at a time: the server takes appends one after another anyway, so a second connection would
    only wait there. Callers gather into groups instead: see events.group_commit.
    """

    def __init__(self, pool: Pool, connect: Connect) -> None:
        super().__init__(pool)
        self._connect = connect
        self._connection: AsyncConnection[TupleRow] | None = None
        self._turn = asyncio.Lock()

    async def append(self, commands: Sequence[AppendCommand], *, deadline: float) -> list[Outcome]:
        if not commands:
            return []
        async with self._turn:
            row, unknown = await self._store(append_parameters(commands), deadline)
            outcomes = outcomes_of(commands, row)
            if unknown:
                outcomes = await self._recognise_own(commands, outcomes, deadline)
            return outcomes

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _store(self, parameters: tuple[Any, ...], deadline: float) -> tuple[TupleRow, bool]:
        """What the function answered, and whether an earlier try of ours may have been stored."""
        waits = pauses()
        unknown = False
        while True:
            try:
                return await within(deadline, self._call(parameters)), unknown
            except (StoreUnavailable, asyncio.CancelledError):
                self._discard()
                raise
            except (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName) as error:
                raise SchemaNotReady("the database has not been migrated") from error
            except _LOST as error:
                self._discard()
                unknown = True
                pause = next(waits)
                if remaining(deadline) <= pause:
                    raise StoreUnavailable("the database cannot be reached") from error
                await asyncio.sleep(pause)

    async def _call(self, parameters: tuple[Any, ...]) -> TupleRow:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = await self._connect()
        try:
            cursor = connection.cursor(binary=True)
            await cursor.execute(statements.APPEND.encode(), parameters, prepare=True)
            row = await cursor.fetchone()
        except (*_LOST, asyncio.CancelledError):
            # Here and not in _discard(): the last to use it closes it, which may be an abandoned task.
            await connection.close()
            raise
        if row is None:
            raise psycopg.OperationalError("append answered nothing")
        return row

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
    return [RecordedEvent(*row) for row in rows]
