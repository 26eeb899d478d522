"""Waiting for the projector: one listener a process, whoever waits and for whatever."""

import asyncio
from collections import defaultdict
from typing import Final
from uuid import UUID

import psycopg

from events.deadline import remaining
from events.errors import TaskledgerError
from events.ids import DEFAULT_TENANT
from events.position import PositionToken
from events.tracking import READ_CHANNEL, WANTED_CHANNEL
from query_side.listener import Connect, Listener
from query_side.read_model import ReadModel, Row, Snapshot, statement
from taskledger.telemetry import get_logger

PAGE_BYTES: Final = 8 * 1024 * 1024
"""Of payload and result that one look brings. More are brought by the next."""

_SETTLED: Final = statement("settled").format(columns=statement("columns"))
_WANT: Final = f"select pg_notify('{WANTED_CHANNEL}', %(position)s)"
_logger = get_logger(__name__)

Seen = tuple[Snapshot, Row]


class ReadWatch:
    """Each look is one query for all who wait, not one for each of them, and brings what they wait for.
    run() does the looking."""

    def __init__(self, model: ReadModel, connect: Connect) -> None:
        self._model = model
        self.listener = Listener(connect, READ_CHANNEL, self.hear)
        self._tag = ""
        self._known = 0
        self._hints = 0
        self._positions: set[tuple[int, asyncio.Future[None]]] = set()
        self._tasks: defaultdict[UUID, dict[asyncio.Future[Seen], int]] = defaultdict(dict)
        """By the checkpoint that each has seen: a look that was sent before tells it nothing."""
        self._looking: asyncio.Task[None] | None = None
        self._look_again = False
        self._wanted = 0
        self._wanting: asyncio.Task[None] | None = None
        self.closed = False

    @property
    def waiting(self) -> int:
        """How many calls wait now."""
        return len(self._positions) + sum(len(futures) for futures in self._tasks.values())

    async def run(self) -> None:
        """Until cancelled. Without the database it tries again; waiters end at their deadlines."""
        await self.listener.run()

    def close(self) -> None:
        """Nobody waits any longer: the process is stopping."""
        self.closed = True
        for _, future in self._positions:
            _finish(future)
        for futures in self._tasks.values():
            for waiting in futures:
                waiting.cancel()

    def is_behind(self, token: PositionToken) -> bool:
        """The read table is known not to have reached the position: to read it now would be in vain."""
        return self.listener.hearing and token.tag == self._tag and self._known < token.position

    async def reached(
        self, position: int, *, seen: int | None, deadline: float, hurry: bool = True
    ) -> None:
        """Returns when the checkpoint has reached the position, at the deadline, or when closed.
        `seen` is the checkpoint that the caller has seen, None if it has not looked; without `hurry` the
        projector may first gather what follows, for some milliseconds."""
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

    async def settled(self, task_id: UUID, *, seen: int, deadline: float) -> Seen | None:
        """The task once no worker will touch it any more; None at the deadline, or when closed."""
        future: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()
        self._tasks[task_id][future] = seen
        try:
            await self._wait(future, seen, deadline)
        finally:
            self._tasks[task_id].pop(future, None)
            if not self._tasks[task_id]:
                del self._tasks[task_id]
        return future.result() if future.done() and not future.cancelled() else None

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
            # Forgotten at once: a client's number may be any, and after a restore positions are lower.
            self._wanting, self._wanted = None, 0

    async def _wait(
        self, future: "asyncio.Future[Seen] | asyncio.Future[None]", seen: int | None, deadline: float
    ) -> None:
        if seen is not None and self._known > seen:
            self._look_soon()  # the notification came between the caller's read and this call
        if not self.closed:
            await asyncio.wait({future}, timeout=remaining(deadline))

    def _look_soon(self) -> None:
        """One look at a time; who comes during one may be too late for it, and is looked for afterwards."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_while_asked(), name="read-watch-look")
        else:
            self._look_again = True

    async def _look_while_asked(self) -> None:
        try:
            await self._look()
            while self._look_again:
                self._look_again = False
                await self._look()
        finally:
            self._looking = None

    async def hear(self, hint: str) -> None:
        """Called by the listener after a notification, each second, and after every connect."""
        if hint.isdecimal():
            self._hints += 1
            self._known = max(self._known, int(hint))
            self._reach(int(hint))
        if self._tasks or (self._positions and not hint) or not self.listener.hearing:
            await self._look()

    async def _look(self) -> None:
        """Where the table is, and who of those waited for is settled."""
        while True:
            hints = self._hints
            ids = [i for i, futures in self._tasks.items() if not all(f.done() for f in futures)]
            parameters = {"ids": ids, "tenant": DEFAULT_TENANT, "page_bytes": PAGE_BYTES}
            try:
                snapshot, rows = await self._model.fetch(_SETTLED, parameters)
            except TaskledgerError as error:
                _logger.debug("cannot look", reason=error.code)
                return
            heard_later = self._known if snapshot.tag == self._tag and hints != self._hints else 0
            self._tag, self._known = snapshot.tag, max(snapshot.checkpoint, heard_later)
            self._reach(snapshot.checkpoint)
            for row in rows:
                for future, seen in self._tasks.get(row["id"], {}).items():
                    if not future.done() and snapshot.checkpoint >= seen:
                        future.set_result((snapshot, dict(row)))
            if not rows or rows[0]["matched"] == len(rows):
                return

    def _reach(self, checkpoint: int) -> None:
        for position, future in self._positions:
            if position <= checkpoint:
                _finish(future)


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
