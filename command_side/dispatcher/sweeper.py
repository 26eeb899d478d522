"""Moves on what nobody else would: due schedules and retries, attempts that are lost or late, single
holes in Redis. Acts only by appending at an expected version, through the same decisions as everybody
else, so a sweep that is late, repeated or wrong is refused and changes nothing."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from redis.exceptions import RedisError

from command_side.clock import DatabaseClock
from command_side.commands import FailTask, QueueDue, TaskCommand
from command_side.dispatcher.holes import HoleFinder
from command_side.dispatcher.leases import HolderWatch
from command_side.dispatcher.status import DispatcherStatus
from command_side.dispatcher.store import OutstandingStore
from command_side.service import Applied, CommandService
from command_side.terms import Outage
from events.errors import LogError, Overloaded, SchemaNotReady, TaskledgerError, Unavailable
from events.task_events import TaskError
from taskledger.metrics import ATTEMPTS_TAKEN_OVER
from taskledger.telemetry import get_logger

CHUNK: Final = 200
"""Tasks loaded at once, payloads included."""
TARGETS_A_SWEEP: Final = 2_000
PURGED_AT_ONCE: Final = 1_000
MAX_REPORTED: Final = 10_000

_logger = get_logger(__name__)

Target = tuple[UUID, TaskCommand]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the sweeper looks, and how patient it is, in seconds."""

    lease: float = 15.0
    """How long a silent holder lives, unless its lease says otherwise."""
    due: float = 0.5
    holders: float = 0.5
    overdue: float = 1.0
    holes: float = 1.0
    hole_patience: float = 15.0
    timeout_grace: float = 10.0
    """A worker ends its late attempts itself; after this long it evidently does not."""
    purge: float = 300.0


class Sweeper:
    """One term of leadership. `checkpoint` tells how far `outstanding` is, `want` asks that it be brought
    to a position soon.

    Each job runs in a loop of its own, so that a long one does not make the look at the leases late.
    """

    def __init__(
        self,
        *,
        store: OutstandingStore,
        commands: CommandService,
        clock: DatabaseClock,
        holes: HoleFinder,
        pace: Pace,
        status: DispatcherStatus,
        checkpoint: Callable[[], int],
        want: Callable[[int], None],
    ) -> None:
        self._store = store
        self._commands = commands
        self._clock = clock
        self._holes = holes
        self._pace = pace
        self._status = status
        self._checkpoint = checkpoint
        self._want = want
        self._appended = 0
        self._watch = HolderWatch(pace.lease, pace.holders)
        self._reported: set[UUID] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for interval, sweep in (
                (self._pace.due, self.queue_due),
                (self._pace.holders, self.fail_lost),
                (self._pace.overdue, self.fail_overdue),
                (self._pace.holes, self.replace_holes),
                (self._pace.purge, self.purge),
            ):
                group.create_task(self._repeat(interval, sweep), name=f"sweeper-{sweep.__name__}")

    async def _repeat(self, interval: float, sweep: Callable[[], Awaitable[None]]) -> None:
        outage = Outage("postgres", self._status)
        while True:
            try:
                await sweep()
                outage.is_over()
            except (Unavailable, Overloaded, SchemaNotReady) as error:
                await asyncio.sleep(outage.goes_on(str(error)))
            else:
                await asyncio.sleep(interval)

    async def queue_due(self) -> None:
        """Schedules and retries whose time has come by the database's clock."""
        self._clock.observe(await self._store.clock())
        beyond: tuple[datetime, UUID] | None = None
        for _ in range(0, TARGETS_A_SWEEP, CHUNK):
            if self._is_behind():
                return
            due = await self._store.due(beyond, CHUNK)
            if not due:
                return
            beyond = due[-1]
            self._status.queued_again += await self._apply([(task, QueueDue()) for _, task in due])

    async def fail_lost(self) -> None:
        """Attempts whose holder is dead: see HolderWatch."""
        started = time.monotonic()
        try:
            holders = await self._store.holders()
        except BaseException:
            self._watch.restart()
            raise
        dead = self._watch.observe(started, time.monotonic(), holders)
        if not dead or self._is_behind():
            return
        held = await self._store.held_by(sorted(dead), TARGETS_A_SWEEP)
        targets: list[Target] = [
            (
                each.task_id,
                FailTask(each.attempt, cause="lost", beside_others=each.beside_others, jitter=_jitter()),
            )
            for each in held
        ]
        lost = await self._apply(targets)
        self._status.lost += lost
        ATTEMPTS_TAKEN_OVER.inc(lost)
        if lost:
            _logger.warning("attempts lost", holders=len(dead), attempts=lost)

    async def fail_overdue(self) -> None:
        """Attempts whose timeout passed and whose worker did not end them."""
        if self._is_behind():
            return
        late = await self._store.overdue(self._pace.timeout_grace, TARGETS_A_SWEEP)
        targets: list[Target] = []
        for task in late:
            error = TaskError(
                type="Timeout", message=f"the attempt ran longer than {task.timeout_seconds:g} s"
            )
            targets.append(
                (task.task_id, FailTask(task.attempt, cause="timeout", error=error, jitter=_jitter()))
            )
        timed_out = await self._apply(targets)
        self._status.timed_out += timed_out
        if timed_out:
            _logger.warning("attempts timed out", attempts=timed_out)

    async def replace_holes(self) -> None:
        """Queued tasks whose stream entry is gone: a new event gives them a new one."""
        if self._is_behind():
            return
        try:
            holes = await self._holes.find(self._clock.now())
        except (RedisError, OSError):
            return  # the relay says so, and makes Redis whole again
        replaced = await self._apply(list(holes))
        self._status.replaced += replaced
        if replaced:
            _logger.warning("stream entries replaced", count=replaced)

    async def purge(self) -> None:
        """What nobody can ask for any more: old idempotency keys, leases of holders long gone."""
        while await self._store.purge(PURGED_AT_ONCE) == PURGED_AT_ONCE:
            pass

    def _is_behind(self) -> bool:
        """Whether `outstanding` does not show yet what we appended last: we would only do it again."""
        return self._checkpoint() < self._appended

    async def _apply(self, targets: Sequence[Target]) -> int:
        """How many tasks were changed. Refusals are expected: the task has moved on."""
        changed = 0
        for start in range(0, len(targets), CHUNK):
            changed += await self._apply_chunk(targets[start : start + CHUNK])
        return changed

    async def _apply_chunk(self, targets: Sequence[Target]) -> int:
        try:
            return await self._execute(targets)
        except LogError as error:
            if len(targets) == 1:
                self._report(targets[0][0], error)
                return 0
        # One task's history means nothing to this release: that must not keep the others waiting.
        return sum([await self._apply_chunk([target]) for target in targets])

    async def _execute(self, targets: Sequence[Target]) -> int:
        states = await self._commands.load([task for task, _ in targets])
        work = [(states[task], command) for task, command in targets if task in states]
        changed = 0
        for answer in await self._commands.execute_each(work):
            if isinstance(answer, Applied) and answer.changed:
                changed += 1
                self._appended = max(self._appended, answer.position)
        self._want(self._appended)
        return changed

    def _report(self, task: UUID, error: TaskledgerError) -> None:
        if task not in self._reported and len(self._reported) < MAX_REPORTED:
            self._reported.add(task)
            self._status.poison += 1
            _logger.error("task passed over", task=str(task), reason=str(error))


def _jitter() -> float:
    return random.random()  # noqa: S311  spreads retries
