"""Entries -> started attempts: loads their tasks in one query, appends TaskStarted in one round trip."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from command_side.commands import StartTask
from command_side.service import Applied, CommandService
from command_side.worker.attempts import Attempt, Attempts
from command_side.worker.streams import Entry
from events.errors import KeyUnavailable, LogError, TaskledgerError
from events.ids import DEFAULT_TENANT
from events.task_state import TaskState
from taskledger.registry import Kind
from taskledger.telemetry import get_logger

_logger = get_logger(__name__)

Pair = tuple[str, str]
"""Tenant and queue."""
Verdict = Literal["start", "adopt", "settled", "forged"]


@dataclass(slots=True)
class Started:
    """What became of a batch of entries."""

    attempts: list[Attempt] = field(default_factory=list[Attempt])
    settled: list[Entry] = field(default_factory=list[Entry])
    """The log owns their tasks, or they are worth nothing: to be acknowledged and deleted."""
    aside: list[tuple[Pair, Entry]] = field(default_factory=list[tuple[Pair, Entry]])
    """Of queues that turned out to be paused."""
    paused: set[Pair] = field(default_factory=set[Pair])


def judge(entry: Entry, state: TaskState | None, holder: str) -> Verdict:
    """What an entry is worth, by what the log says of its task. Pure.

    `adopt`: our own earlier start was stored although we were told that the database did not answer.
    """
    if state is None:
        return "forged"
    if (state.queue, state.kind, state.priority) != (
        entry.stream.queue,
        entry.stream.kind,
        entry.stream.priority,
    ):
        return "forged"
    if state.status == "queued":
        return "start"
    return "adopt" if state.status == "running" and state.holder == holder else "settled"


class Starter:
    def __init__(
        self,
        service: CommandService,
        kinds: Mapping[str, Kind],
        attempts: Attempts,
        *,
        holder: str,
        worker: str,
    ) -> None:
        self._service = service
        self._kinds = kinds
        self._attempts = attempts
        self._holder = holder
        self._command = StartTask(holder, worker)
        self._uncertain: set[UUID] = set()
        """Tasks that we tried to start without learning whether it is stored."""
        self.counts: Counter[str] = Counter()
        """Entries by what they were worth."""

    async def start(self, entries: Sequence[Entry]) -> Started:
        """Raises StoreUnavailable or Overloaded: the tasks may then have started or not, and the same
        entries must be given again, which finds out."""
        done = Started()
        first: dict[UUID, Entry] = {}
        for entry in entries:
            if entry.task_id is None:
                self._drop(entry, "forged", done)
            elif entry.task_id in first:
                self._drop(entry, "settled", done)
            else:
                first[entry.task_id] = entry
        if first:
            await self._start(first, done)
        return done

    async def _start(self, first: dict[UUID, Entry], done: Started) -> None:
        states, unknown = await self._load(first, done)
        to_start: list[tuple[Entry, TaskState]] = []
        for task_id, entry in first.items():
            if task_id in unknown:
                continue  # stays pending: a worker of a later release can claim it
            state = states.get(task_id)
            verdict = judge(entry, state, self._holder)
            if state is None or verdict in ("settled", "forged"):
                self._drop(entry, verdict, done)
            elif verdict == "adopt":
                self._adopt(entry, state, done)
            elif (state.tenant, state.queue) in done.paused:
                done.aside.append(((state.tenant, state.queue), entry))
            else:
                to_start.append((entry, state))
        if to_start:
            await self._append(to_start, done)

    async def _append(self, to_start: list[tuple[Entry, TaskState]], done: Started) -> None:
        ids = {state.id for _, state in to_start}
        try:
            answers = await self._service.execute_each([(state, self._command) for _, state in to_start])
        except TaskledgerError:
            self._uncertain |= ids
            raise
        refused: list[Entry] = []
        for (entry, _), answer in zip(to_start, answers, strict=True):
            if isinstance(answer, Applied):
                self._take(entry, answer.state, done)
            else:
                refused.append(entry)
        if not refused:
            return
        # Somebody was faster; or it was ourselves, in a try whose answer was lost.
        try:
            states = await self._service.load([entry.task_id for entry in refused if entry.task_id])
        except TaskledgerError:
            # The attempts that did start are not handed on: the same entries, given again, find them.
            self._uncertain |= {attempt.state.id for attempt in done.attempts}
            raise
        for entry in refused:
            state = states.get(entry.task_id) if entry.task_id else None
            if state is not None and judge(entry, state, self._holder) == "adopt":
                self._adopt(entry, state, done)
            else:
                self._drop(entry, "settled", done)

    def _adopt(self, entry: Entry, state: TaskState, done: Started) -> None:
        """Only where our start was in doubt: of an attempt that runs here, or has just ended, another
        entry is worth nothing."""
        if state.id in self._uncertain and not self._attempts.holds(state.id, state.attempt):
            self.counts["adopted"] += 1
            self._take(entry, state, done)
        else:
            self._drop(entry, "settled", done)

    def _take(self, entry: Entry, state: TaskState, done: Started) -> None:
        self.counts["started"] += 1
        self._uncertain.discard(state.id)
        done.settled.append(entry)
        attempt = Attempt(state, self._kinds[state.kind])
        if state.cancel_requested:
            attempt.stop("cancelled")
        done.attempts.append(attempt)

    def _drop(self, entry: Entry, verdict: Verdict, done: Started) -> None:
        self.counts[verdict] += 1
        if entry.task_id is not None:
            self._uncertain.discard(entry.task_id)
        done.settled.append(entry)
        if verdict == "forged":
            _logger.warning("entry without a task dropped", stream=entry.stream.key, entry=entry.id)

    async def _load(
        self, entries: Mapping[UUID, Entry], done: Started
    ) -> tuple[dict[UUID, TaskState], set[UUID]]:
        """The tasks, and which of them this release cannot read or this process has no key for. Fills in
        `done.paused`."""
        pairs = {(DEFAULT_TENANT, entry.stream.queue) for entry in entries.values()}
        states: dict[UUID, TaskState] = {}
        unknown: set[UUID] = set()
        try:
            states, done.paused = await self._service.load_with_paused(list(entries), list(pairs))
        except (LogError, KeyUnavailable):
            _, done.paused = await self._service.load_with_paused([], list(pairs))
            for task_id in entries:  # one task's history must not hold up the others
                try:
                    states |= await self._service.load([task_id])
                except (LogError, KeyUnavailable) as error:
                    unknown.add(task_id)
                    self.counts["unknown"] += 1
                    _logger.error("task left alone", task=str(task_id), reason=str(error))  # noqa: TRY400
        others = {(state.tenant, state.queue) for state in states.values()} - pairs
        if others:
            _, paused = await self._service.load_with_paused([], list(others))
            done.paused |= paused
        return states, unknown
