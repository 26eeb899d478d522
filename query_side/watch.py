"""Waiting for the projector: one listener a process, whoever waits and for whatever."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from events.connections import answered
from events.deadline import remaining
from events.errors import TaskledgerError
from events.tracking import READ_CHANNEL, WANTED_CHANNEL
from query_side.read_model import ReadModel, statement
from taskledger.telemetry import get_logger

POLL_SECONDS: Final = 1.0
"""NOTIFY is a hint: while anybody waits, the read table is looked at this often anyway."""
CHECK_SECONDS: Final = 5.0
"""After this long without a word the connection is asked whether it still lives."""
_ANSWER_SECONDS: Final = 3.0
_MAX_PAUSE_SECONDS: Final = 2.0
_WANT: Final = f"select pg_notify('{WANTED_CHANNEL}', %(position)s)"

Connect = Callable[[], Awaitable[AsyncConnection[TupleRow]]]
_logger = get_logger(__name__)


class ReadWatch:
    """Each look is one query for all who wait, not one for each of them. run() does the looking."""

    def __init__(self, model: ReadModel, connect: Connect) -> None:
        self._model = model
        self._connect = connect
        self._seen = 0
        self._positions: set[tuple[int, asyncio.Future[None]]] = set()
        self._tasks: defaultdict[UUID, set[asyncio.Future[None]]] = defaultdict(set)
        self._looking: asyncio.Task[None] | None = None
        self._wanted = 0
        self._wanting: asyncio.Task[None] | None = None
        self.closed = False

    @property
    def seen(self) -> int:
        """The checkpoint as last heard of; it may be further by now."""
        return self._seen

    @property
    def waiting(self) -> int:
        """How many calls wait now."""
        return len(self._positions) + sum(len(futures) for futures in self._tasks.values())

    def close(self) -> None:
        """Nobody waits any longer: the process is stopping."""
        self.closed = True
        for future in [f for _, f in self._positions] + [f for fs in self._tasks.values() for f in fs]:
            _finish(future)

    async def reached(self, position: int, *, seen: int, deadline: float, hurry: bool = True) -> None:
        """Returns when the checkpoint has reached the position, at the deadline, or when closed.
        `seen` is the checkpoint that the caller has seen; without `hurry` the projector may first gather
        what follows, for some milliseconds."""
        if hurry and position > self._wanted:
            self._wanted = position
            if self._wanting is None:
                self._wanting = asyncio.create_task(self._want(), name="read-watch-want")
        future = asyncio.get_running_loop().create_future()
        entry = (position, future)
        self._positions.add(entry)
        try:
            await self._wait(future, seen, deadline)
        finally:
            self._positions.discard(entry)

    async def settled(self, task_id: UUID, *, seen: int, deadline: float) -> None:
        """As reached(), for a task that no worker will touch any more."""
        future = asyncio.get_running_loop().create_future()
        self._tasks[task_id].add(future)
        try:
            await self._wait(future, seen, deadline)
        finally:
            self._tasks[task_id].discard(future)
            if not self._tasks[task_id]:
                del self._tasks[task_id]

    async def _want(self) -> None:
        """One notification for all who came while the last one was under way."""
        said = 0
        try:
            while said < self._wanted:
                said = self._wanted
                await self._model.read(_WANT, {"position": str(said)})
        except (TaskledgerError, psycopg.Error) as error:  # a hint that cannot be given, as on a standby
            _logger.debug("cannot say what is wanted", reason=type(error).__name__)
        finally:
            self._wanting = None

    async def _wait(self, future: asyncio.Future[None], seen: int, deadline: float) -> None:
        if self._seen > seen and self._looking is None:
            # The notification came between the caller's read and this call.
            self._looking = asyncio.create_task(self._look(), name="read-watch-look")
            self._looking.add_done_callback(self._looked)
        if not self.closed:
            await asyncio.wait({future}, timeout=remaining(deadline))

    def _looked(self, _: asyncio.Task[None]) -> None:
        self._looking = None

    async def run(self) -> None:
        """Until cancelled. Without the database it tries again; waiters end at their deadlines."""
        pause = 0.1
        while True:
            try:
                connection = await self._connect()
                async with connection:
                    await answered(connection, f"listen {READ_CHANNEL}".encode(), seconds=_ANSWER_SECONDS)
                    pause = 0.1
                    await self._follow(connection)
            except (psycopg.Error, OSError) as error:
                _logger.debug("listening again", reason=type(error).__name__)
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311  jitter
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def _follow(self, connection: AsyncConnection[TupleRow]) -> None:
        heard = time.monotonic()
        while True:
            await self._look()
            async for notification in connection.notifies(timeout=POLL_SECONDS, stop_after=1):
                heard = time.monotonic()
                if notification.payload.isdecimal():
                    self._seen = int(notification.payload)
                    self._reach(self._seen)
            if time.monotonic() - heard > CHECK_SECONDS:
                await answered(connection, b"select 1", seconds=_ANSWER_SECONDS)
                heard = time.monotonic()

    async def _look(self) -> None:
        if not self.waiting or (not self._tasks and all(f.done() for _, f in self._positions)):
            return
        try:
            snapshot, rows = await self._model.fetch(statement("settled"), {"ids": list(self._tasks)})
        except TaskledgerError as error:
            _logger.debug("cannot look", reason=error.code)
            return
        self._seen = snapshot.checkpoint
        self._reach(snapshot.checkpoint)
        for row in rows:
            for future in self._tasks.get(row["id"], ()):
                _finish(future)

    def _reach(self, checkpoint: int) -> None:
        """Who waits for a position needs no look: the read it is woken for says where the table is."""
        for position, future in self._positions:
            if position <= checkpoint:
                _finish(future)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
