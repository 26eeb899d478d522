"""Claims: entries of external kinds become started tasks with a lease of their own."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from command_side.api.entries import Entries, Entry
from command_side.api.leases import Leases, holder_of
from command_side.commands import FailTask, StartTask, TaskCommand
from command_side.service import Applied, CommandService, ConcurrencyConflictRejected, Origin
from events.deadline import after, remaining
from events.envelopes import Erased
from events.task_events import ERASED_ERROR
from events.task_state import TaskState
from taskledger.admission import EDGE_SECONDS

_PAUSED_SECONDS: Final = 1.0
"""How soon a waiting claim notices that its queue goes on."""


@dataclass(frozen=True, slots=True)
class Claimed:
    tasks: list[TaskState]
    lease_expires_at: datetime | None
    """None where there are no tasks."""


@dataclass(frozen=True, slots=True)
class Wanted:
    queue: str
    kinds: Sequence[str]
    worker: str
    limit: int
    lease_seconds: float | None
    origin: Origin


class Claims:
    def __init__(self, service: CommandService, entries: Entries, leases: Leases) -> None:
        self._service = service
        self._entries = entries
        self._leases = leases
        self._closed = False

    def close(self) -> None:
        """The process stops: claims that wait are answered at once, or after the read under way."""
        self._closed = True

    async def claim(
        self, wanted: Wanted, wait_seconds: float, gone: Callable[[], Awaitable[bool]]
    ) -> Claimed:
        """Up to `limit` tasks, all started, as soon as there is one; nothing after the wait.

        `gone` tells whether the client still listens: nothing is started for one that does not.
        A crash leaves entries pending, or attempts without a lease; both come back by themselves.
        Raises BrokerUnavailable, StoreUnavailable, Overloaded.
        """
        deadline = after(wait_seconds)
        latest = after(wait_seconds + EDGE_SECONDS)
        while True:
            taken = await self._entries.take(wanted.queue, wanted.kinds, wanted.limit)
            found = await self._start_for(wanted, taken, gone) if taken else _Found()
            if found.tasks or found.gone:
                return Claimed(found.tasks, found.lease_expires_at)
            if found.dropped and remaining(latest):
                continue  # stale entries hid what comes after them
            left = remaining(deadline)
            if left == 0 or self._closed or await gone():
                return Claimed([], None)
            if taken:
                await asyncio.sleep(min(left, _PAUSED_SECONDS))
            else:
                await self._entries.wait(wanted.queue, wanted.kinds, left)

    async def _start_for(
        self, wanted: Wanted, entries: list[Entry], gone: Callable[[], Awaitable[bool]]
    ) -> "_Found":
        """No entry is lost, whatever happens: those not dropped are spare again."""
        try:
            if await gone():
                self._entries.put_back(entries)
                return _Found(gone=True)
            return await self._start(wanted, entries)
        except BaseException:
            self._entries.put_back(entries)
            raise

    async def _start(self, wanted: Wanted, entries: list[Entry]) -> "_Found":
        """Entries of a paused queue stay pending."""
        ids = list(dict.fromkeys(entry.task for entry in entries if entry.task is not None))
        pair = (wanted.origin.tenant, wanted.queue)
        states, paused = await self._service.load_with_paused(ids, [pair])
        if paused:
            self._entries.put_back(entries)
            return _Found()
        fit = [states[id_] for id_ in ids if id_ in states and _fits(states[id_], wanted)]
        work: list[tuple[TaskState, TaskCommand]] = [
            (state, StartTask(holder=None, worker=wanted.worker)) for state in fit
        ]
        answers = await self._service.execute_each(work, wanted.origin)
        started = await given_up(
            self._service,
            [answer.state for answer in answers if isinstance(answer, Applied)],
            wanted.origin,
        )
        expires_at: datetime | None = None
        if started:
            holders = [holder_of(state.id, state.attempt) for state in started]
            expires_at = await self._leases.grant(holders, wanted.lease_seconds)
        undecided: set[UUID | None] = {
            state.id
            for state, answer in zip(fit, answers, strict=True)
            if isinstance(answer, ConcurrencyConflictRejected)
        }
        self._entries.put_back(entry for entry in entries if entry.task in undecided)
        dropped = [entry for entry in entries if entry.task not in undecided]
        await self._entries.drop(dropped)
        return _Found(started, expires_at, len(dropped))


async def given_up(
    service: CommandService, started: Sequence[TaskState], origin: Origin
) -> list[TaskState]:
    """What is left to work on: a task whose data was erased meanwhile ends here, dead."""
    erased = [state for state in started if isinstance(state.payload, Erased)]
    if erased:
        await service.execute_each(
            [(state, FailTask(state.attempt, "discarded", ERASED_ERROR)) for state in erased], origin
        )
    return [state for state in started if not isinstance(state.payload, Erased)]


@dataclass(frozen=True, slots=True)
class _Found:
    tasks: list[TaskState] = field(default_factory=list[TaskState])
    lease_expires_at: datetime | None = None
    dropped: int = 0
    gone: bool = False


def _fits(state: TaskState, wanted: Wanted) -> bool:
    """An entry is only a hint, and anybody who reaches Redis can write one: the log decides."""
    return (
        state.status == "queued"
        and state.tenant == wanted.origin.tenant
        and state.queue == wanted.queue
        and state.kind in wanted.kinds
    )
