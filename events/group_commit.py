"""Many appends, one round trip: whatever has gathered while the last commit was under way."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Final, Protocol

from events.append import AppendCommand, Outcome
from events.deadline import after, remaining
from events.errors import Overloaded, StoreUnavailable, TaskledgerError

BUDGET_SECONDS: Final = 5.0
"""The edge's deadline: a client is told to retry rather than kept waiting."""
MAX_GROUP_BYTES: Final = 4 * 1024 * 1024
"""About what the server stores in 100 ms: a bigger group would only make its members wait."""
MAX_WAITING: Final = 10_000
"""Commands. Past this the process refuses (429) instead of growing."""


_logger = logging.getLogger(__name__)


class Appender(Protocol):
    async def append(self, commands: Sequence[AppendCommand], *, deadline: float) -> list[Outcome]: ...


@dataclass(eq=False, slots=True)
class _Waiting:
    command: AppendCommand
    since: float
    deadline: float
    size: int
    outcome: asyncio.Future[Outcome]
    touches: list[object]


class GroupCommit:
    """Never waits to gather: an append begins at once when none is under way, and what arrives
    meanwhile forms the next group. A group holds at most one command per stream and per key."""

    def __init__(
        self,
        log: Appender,
        *,
        budget_seconds: float = BUDGET_SECONDS,
        max_group_bytes: int = MAX_GROUP_BYTES,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._log = log
        self._budget = budget_seconds
        self._max_group_bytes = max_group_bytes
        self._group_bytes = max_group_bytes
        """What is stored in time at the server's present pace."""
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._flusher: asyncio.Task[None] | None = None

    async def append(self, command: AppendCommand) -> Outcome:
        """The command's own outcome. Raises Overloaded when too many wait, and StoreUnavailable when
        those before it wait too long, or past the budget: only then it may be stored. A caller that is
        cancelled does not undo its append."""
        return await self._enqueue([command])[0]

    async def append_many(self, commands: Sequence[AppendCommand]) -> list[Outcome]:
        """As append(), for commands that succeed or fail each on its own. Raises only after every
        command has been answered."""
        answers = await asyncio.gather(*self._enqueue(commands), return_exceptions=True)
        outcomes: list[Outcome] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            outcomes.append(answer)
        return outcomes

    def _enqueue(self, commands: Sequence[AppendCommand]) -> list[asyncio.Future[Outcome]]:
        if len(self._waiting) + len(commands) > self._max_waiting:
            raise Overloaded("too many commands are waiting to be stored")
        now = time.monotonic()
        if self._waiting and now - self._waiting[0].since > self._budget / 2:
            # Behind it this one would hardly be stored in time, and whoever is stored only just in
            # time has a client that no longer waits: all work would be done, and none for anybody.
            raise StoreUnavailable("the database does not keep up")
        loop = asyncio.get_running_loop()
        deadline = after(self._budget)
        entries = [
            _Waiting(command, now, deadline, command.size, loop.create_future(), _touched(command))
            for command in commands
        ]
        self._waiting.extend(entries)
        if self._flusher is None:
            # In a context of its own: what the first caller is allowed must not bind those after it.
            self._flusher = asyncio.create_task(self._flush(), name="group-commit", context=Context())
        return [e.outcome for e in entries]

    async def drain(self) -> None:
        """Returns when nothing waits any more. Call after the last append()."""
        while self._flusher is not None:
            await asyncio.wait({self._flusher})

    async def _flush(self) -> None:
        try:
            while self._waiting:
                group = self._take()
                if group:
                    began = time.monotonic()
                    await self._append(group)
                    self._adapt(sum(e.size for e in group), time.monotonic() - began)
        finally:
            self._flusher = None

    def _adapt(self, size: int, seconds: float) -> None:
        """Smaller groups for a slow server: one that takes longer than its members may wait fails for
        all of them, and under load so would each one after it."""
        if seconds > self._budget / 10:
            self._group_bytes = size // 2
        elif seconds < self._budget / 20:
            self._group_bytes = min(2 * max(self._group_bytes, size), self._max_group_bytes)

    async def _append(self, group: list[_Waiting]) -> None:
        try:
            outcomes = await self._log.append(
                [e.command for e in group], deadline=min(e.deadline for e in group)
            )
        except TaskledgerError as error:
            for e in group:
                _fail(e, error)
        except Exception:
            # The server refused the group as a whole, which only a defect of ours can cause: find the
            # command at fault instead of failing its neighbours, and leave nobody without an answer.
            if len(group) > 1:
                for e in group:
                    await self._append([e])
            else:
                _logger.exception("an append was refused by the server")
                _fail(group[0], StoreUnavailable("the append failed"))
        else:
            for e, outcome in zip(group, outcomes, strict=True):
                if not e.outcome.done():
                    e.outcome.set_result(outcome)

    def _take(self) -> list[_Waiting]:
        """The next group, in order of arrival; what must not go with it waits for the one after."""
        group: list[_Waiting] = []
        held_back: list[_Waiting] = []
        touched: set[object] = set()
        size = 0
        while self._waiting:
            e = self._waiting.popleft()
            if remaining(e.deadline) <= self._budget / 5:  # no time to spare for a group
                _fail(e, StoreUnavailable("the deadline passed before the command was sent"))
            elif not touched.isdisjoint(e.touches):
                held_back.append(e)
                touched.update(e.touches)
            elif group and size + e.size > self._group_bytes:
                self._waiting.appendleft(e)
                break
            else:
                group.append(e)
                touched.update(e.touches)
                size += e.size
        self._waiting.extendleft(reversed(held_back))
        return group


def _touched(command: AppendCommand) -> list[object]:
    touches: list[object] = [stream.originator_id for stream in command.streams]
    if command.key is not None:
        key = command.key
        touches.append((key.tenant, key.operation, key.key))
    return touches


def _fail(entry: _Waiting, error: TaskledgerError) -> None:
    if not entry.outcome.done():
        entry.outcome.set_exception(error)
