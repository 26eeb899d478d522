"""Connections for synchronous callers: a few kept open, every use cut off at its deadline, every
error in the terms of the eventsourcing library and of events.errors at once. And how to cut one off."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from threading import BoundedSemaphore, Timer
from typing import Final, Self, TypeVar

import psycopg
from eventsourcing import persistence
from eventsourcing.persistence import PersistenceError
from psycopg import AsyncConnection, AsyncCursor, Connection
from psycopg.rows import TupleRow

from events.deadline import pauses, remaining
from events.errors import SchemaNotReady, StorageFull, StoreUnavailable

Connect = Callable[[], Connection[TupleRow]]
"""Opens a connection. It should bound its own time (`connect_timeout`): nothing else can."""

T = TypeVar("T")

MAX_CONNECTIONS: Final = 4
"""Appends go one after another in the server anyway; reads of one process rarely meet."""

_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError)
_NOT_MIGRATED: Final = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidSchemaName,
)
_TRANSLATIONS: Final[tuple[tuple[type[psycopg.Error], type[PersistenceError]], ...]] = (
    (psycopg.IntegrityError, persistence.IntegrityError),
    (psycopg.DataError, persistence.DataError),
    (psycopg.InternalError, persistence.InternalError),
    (psycopg.NotSupportedError, persistence.NotSupportedError),
    (psycopg.ProgrammingError, persistence.ProgrammingError),
    (psycopg.DatabaseError, persistence.DatabaseError),
)


def unavailable(error: psycopg.Error) -> StoreUnavailable:
    """What to tell callers of an OperationalError or InterfaceError."""
    if isinstance(error, psycopg.errors.DiskFull):
        return StorageFull("the database has no room left to store anything")
    return StoreUnavailable("the database cannot be reached")


class DatabaseUnavailable(persistence.OperationalError, StoreUnavailable):
    """StoreUnavailable for our callers, OperationalError for the library's."""


class DatabaseNotMigrated(persistence.ProgrammingError, SchemaNotReady):
    """SchemaNotReady for our callers, ProgrammingError for the library's."""


@contextmanager
def translated_errors() -> Generator[None]:
    """psycopg's errors become the library's; the message stays with the cause, as it may quote data."""
    try:
        yield
    except _NOT_MIGRATED as error:
        raise DatabaseNotMigrated("the database has not been migrated") from error
    except _LOST as error:
        state = f" ({error.sqlstate})" if error.sqlstate else ""
        raise DatabaseUnavailable(f"the database does not answer{state}") from error
    except psycopg.Error as error:
        ours = next((ours for theirs, ours in _TRANSLATIONS if isinstance(error, theirs)), PersistenceError)
        raise ours(f"{type(error).__name__} ({error.sqlstate})") from error


class Connections:
    """Thread-safe. Opens connections as they are needed, at most MAX_CONNECTIONS, in autocommit."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._idle: list[Connection[TupleRow]] = []
        self._slots = BoundedSemaphore(MAX_CONNECTIONS)
        self._closed = False

    def repeat(self, work: Callable[[Connection[TupleRow]], T], deadline: float) -> tuple[T, bool]:
        """The result of `work`, which is tried anew on another connection each time one is lost, until
        the deadline; and whether it took more than one try, so that an earlier one may have had its
        effect too. Only for work that is safe to repeat. Raises the library's errors."""
        waits = pauses()
        repeated = False
        while True:
            try:
                return self.once(work, deadline), repeated
            except DatabaseUnavailable:
                repeated = True
                pause = next(waits)
                if remaining(deadline) <= pause:
                    raise
                time.sleep(pause)

    def once(self, work: Callable[[Connection[TupleRow]], T], deadline: float) -> T:
        """The result of `work`. Raises the library's errors; after DatabaseUnavailable its effect is
        unknown."""
        if not self._slots.acquire(timeout=remaining(deadline)):
            raise DatabaseUnavailable("no database connection came free in time")
        try:
            with translated_errors():
                return self._use(work, deadline)
        finally:
            self._slots.release()

    def open(self) -> Connection[TupleRow]:
        """A connection of the caller's own, in autocommit. Raises psycopg's errors."""
        connection = self._connect()
        connection.autocommit = True
        return connection

    def close(self) -> None:
        """Closes what is idle now, and the rest as it comes back."""
        self._closed = True
        self._close_idle()

    def _use(self, work: Callable[[Connection[TupleRow]], T], deadline: float) -> T:
        connection = self._take()
        try:
            with Watchdog(connection, deadline) as watchdog:
                result = work(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, _LOST):
                self._close_idle()  # most likely lost with this one: a restart loses all
            raise
        if watchdog.has_fired:
            connection.close()
        else:
            self._idle.append(connection)
        if self._closed:
            self._close_idle()
        return result

    def _take(self) -> Connection[TupleRow]:
        try:
            return self._idle.pop()
        except IndexError:
            return self.open()

    def _close_idle(self) -> None:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                return  # another thread took the last one
            connection.close()


class Watchdog:
    """Shuts the connection's socket down at the deadline, so that the statement under way raises
    psycopg.OperationalError. A frozen server or a dead network answers to nothing less."""

    def __init__(self, connection: Connection[TupleRow], deadline: float) -> None:
        # Of its own: libpq may close its descriptor at any time, and the number be used anew.
        self._socket = socket.socket(fileno=os.dup(connection.pgconn.socket))
        self._timer = Timer(remaining(deadline), self._fire)
        self._timer.name = "database-deadline"
        self.has_fired = False

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        self._socket.close()

    def _fire(self) -> None:
        self.has_fired = True
        with suppress(OSError):  # the connection is gone already
            self._socket.shutdown(socket.SHUT_RDWR)


def sever(connection: AsyncConnection[TupleRow]) -> None:
    """Cuts the connection under whatever waits on it, which then fails at once with OperationalError.
    Closing the file descriptor instead would leave the waiter, and the event loop, with a dead one."""
    if connection.closed:
        return
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)


async def answered(
    connection: AsyncConnection[TupleRow],
    statement: bytes,
    parameters: tuple[object, ...] = (),
    *,
    seconds: float,
) -> AsyncCursor[TupleRow]:
    """What the server says within so many seconds, else OperationalError and a connection that is cut off.
    Never by cancellation: psycopg would ask the server to cancel and then wait for it, and a frozen server
    never answers."""
    work = asyncio.ensure_future(connection.execute(statement, parameters))
    try:
        done, _ = await asyncio.wait({work}, timeout=seconds)
    except asyncio.CancelledError:
        sever(connection)
        await asyncio.wait({work})
        raise
    if not done:
        sever(connection)
    return await work
