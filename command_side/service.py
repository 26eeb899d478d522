"""Load, decide, append: what every process that changes a task does, in one place."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from command_side.clock import DatabaseClock
from command_side.commands import CreateTask, TaskCommand
from command_side.errors import IdempotencyKeyReused, TaskNotFound, WrongState
from command_side.sealing import OldTasks, Sealing
from command_side.task import Context, create, decide
from events.append import (
    AppendCommand,
    Appended,
    Conflict,
    IdempotencyKey,
    Outcome,
    RecordedEvent,
    Replayed,
    StreamAppend,
)
from events.codec import EventMapper
from events.errors import CommandRejected, ConcurrencyConflict, UndecodableEvent
from events.group_commit import GroupCommit
from events.ids import DEFAULT_TENANT, new_task_id, new_uid, queue_id
from events.log import LogReader
from events.queue_events import QueueEvent, QueuePaused, QueueResumed, is_paused
from events.records import EventRecord
from events.task_events import TaskQueued, TaskRequeued
from events.task_state import TaskState, evolve
from events.vault import OFF, Decoder, Vault

CREATED_AT_ONCE: Final = 200
"""Of a large batch, before others on the event loop get their turn; about 2 ms of work."""
MAX_DECISIONS: Final = 5
"""How often a command is decided again after others changed its task meanwhile."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who caused a command, as far as the edge knows; recorded with its events."""

    tenant: str = DEFAULT_TENANT
    actor: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None


NOBODY: Final = Origin()


@dataclass(frozen=True, slots=True)
class Applied:
    """The task after a command, and the position that a reader must reach to see it."""

    state: TaskState
    position: int
    changed: bool
    """False where the command's effect held already."""


@dataclass(frozen=True, slots=True)
class Created:
    tasks: list[TaskState]
    """In the order asked for; each with its own position."""
    position: int
    replayed: bool
    """Whether this is the first answer again, for an idempotency key that was used before."""


@dataclass(slots=True, eq=False)
class _Pending:
    """A command on its way: the state it was last decided on, and what was decided."""

    state: TaskState
    command: TaskCommand
    origin: Origin
    events: Sequence[EventRecord] = ()
    answer: "Applied | CommandRejected | None" = None


class CommandService:
    """Every change of a task goes through here, whoever asks: API, worker or sweeper."""

    def __init__(
        self,
        log: LogReader,
        commits: GroupCommit,
        mapper: EventMapper,
        clock: DatabaseClock,
        vault: Vault | None = OFF,
    ) -> None:
        """None instead of a vault: for whoever neither needs to see anybody's text nor has any to add. Then
        what is sealed stays so, and what is said is said in clear."""
        self._log = log
        self._commits = commits
        self._mapper = mapper
        self._clock = clock
        self.sealing = Sealing(vault)

    async def create(
        self,
        commands: Sequence[CreateTask],
        origin: Origin,
        key: IdempotencyKey | None = None,
        ids: Sequence[UUID] | None = None,
    ) -> Created:
        """Appends TaskCreated for all of them, or for none.

        With a key that was used before: the tasks of the first request, as they were created.
        Raises IdempotencyKeyReused if that request was another one.
        """
        seal = await self.sealing.new(commands)
        context = _context(origin, self._clock.now())
        streams: list[StreamAppend] = []
        events: list[EventRecord] = []
        for number, command in enumerate(commands):
            if number % CREATED_AT_ONCE == CREATED_AT_ONCE - 1:
                await asyncio.sleep(0)
            task_id = ids[number] if ids is not None else new_task_id()
            event = create(task_id, command, context, number)
            stored = event if seal is None else seal.event(event, command)
            lane = "" if event.scheduled else command.priority
            streams.append(
                self._stream(task_id, [stored], command.tenant, command.kind, command.queue, lane)
            )
            events.append(event if seal is None else stored.replaced(payload=event.payload))
        if seal is not None:
            key = seal.key(key)
        outcome = await self._commits.append(AppendCommand(streams, key))
        match outcome:
            case Appended():
                self._clock.observe(outcome.recorded_at)
                tasks = [
                    evolve(None, event, at=outcome.recorded_at, position=outcome.first_position + n)
                    for n, event in enumerate(events)
                ]
                return Created(tasks, outcome.last_position, replayed=False)
            case Replayed():
                return await self._first_answer(outcome, key)
            case Conflict():
                raise ConcurrencyConflict("a task with this id exists already")

    async def load(self, ids: Sequence[UUID]) -> dict[UUID, TaskState]:
        """The tasks as the log has them now; one query. Ids that are no tasks have no entry.

        Sealed text is opened; where its key was destroyed stands events.envelopes.Erased. Raises
        KeyUnavailable.
        """
        streams = await self._log.read_streams(ids)
        return await self._tasks(streams)

    async def load_with_paused(
        self, ids: Sequence[UUID], queues: Sequence[tuple[str, str]]
    ) -> tuple[dict[UUID, TaskState], set[tuple[str, str]]]:
        """As load(), and which of the (tenant, queue) pairs are paused, still in one query."""
        queue_ids = {queue_id(tenant, queue): (tenant, queue) for tenant, queue in queues}
        streams = await self._log.read_streams([*ids, *queue_ids])
        paused = {
            pair
            for qid, pair in queue_ids.items()
            if is_paused(self._mapper.decode(event) for event in streams.get(qid, ()))
        }
        return await self._tasks(streams), paused

    def fold(self, recorded: Sequence[RecordedEvent], decoder: Decoder | None = None) -> TaskState:
        """Without a decoder sealed text stays sealed."""
        decode = (decoder or self._mapper).decode
        state: TaskState | None = None
        for event in recorded:
            state = evolve(state, decode(event), at=event.recorded_at, position=event.id)
        if state is None:
            raise UndecodableEvent("a task without events")
        return state

    async def execute(self, task_id: UUID, command: TaskCommand, origin: Origin = NOBODY) -> Applied:
        """Raises TaskNotFound, what decide() raises, ConcurrencyConflict, StoreUnavailable."""
        state = (await self.load([task_id])).get(task_id)
        if state is None or state.tenant != origin.tenant:
            raise TaskNotFound
        return await self.execute_on(state, command, origin)

    async def execute_on(self, state: TaskState, command: TaskCommand, origin: Origin = NOBODY) -> Applied:
        """As execute(), on a state that was loaded or decided before: no read unless it is stale."""
        answer = (await self.execute_each([(state, command)], origin))[0]
        if isinstance(answer, CommandRejected):
            raise answer
        return answer

    async def execute_each(
        self, work: Sequence[tuple[TaskState, TaskCommand]], origin: Origin = NOBODY
    ) -> list[Applied | CommandRejected]:
        """Many tasks at once, one command each; every one succeeds or is refused on its own.

        On a version conflict the task is loaded and the command decided again, up to MAX_DECISIONS
        times. A refusal is decided on a state from the log, never on a stale one. Raises only
        StoreUnavailable, KeyUnavailable and Overloaded, for all.
        """
        pending = [_Pending(state, command, origin) for state, command in work]
        open_ = pending
        fresh = False
        for _ in range(MAX_DECISIONS):
            stale = self._decide(open_, fresh=fresh)
            appends = [p for p in open_ if p.answer is None and p not in stale]
            if appends:
                seal = await self.sealing.old((p.state, p.events) for p in appends)
                outcomes = await self._commits.append_many([self._command(p, seal) for p in appends])
                for p, outcome in zip(appends, outcomes, strict=True):
                    if not self._settle(p, outcome):
                        stale.append(p)
            if not stale:
                break
            await self._reload(stale)
            open_, fresh = [p for p in stale if p.answer is None], True
        return [
            p.answer or ConcurrencyConflictRejected("the task kept changing; try again") for p in pending
        ]

    async def set_paused(
        self, queue: str, *, paused: bool, origin: Origin = NOBODY, reason: str | None = None
    ) -> int:
        """Pauses or resumes a queue; returns the position. Doing it twice changes nothing."""
        qid = queue_id(origin.tenant, queue)
        for _ in range(MAX_DECISIONS):
            recorded = await self._log.read_stream(qid)
            if is_paused(self._mapper.decode(event) for event in recorded) == paused:
                return recorded[-1].id if recorded else 0
            cls: type[QueueEvent] = QueuePaused if paused else QueueResumed
            event = cls(
                originator_id=qid,
                originator_version=len(recorded) + 1,
                event_uid=new_uid(),
                tenant=origin.tenant,
                queue=queue,
                by=origin.actor,
                reason=reason,
            )
            command = AppendCommand([self._stream(qid, [event], origin.tenant, "", queue)])
            outcome = await self._commits.append(command)
            if isinstance(outcome, Appended):
                return outcome.last_position
        raise ConcurrencyConflict("the queue kept changing; try again")

    def _decide(self, pending: Sequence[_Pending], *, fresh: bool) -> list[_Pending]:
        """Decides each; returns those whose refusal (or "nothing to do") needs a look at the log first."""
        stale: list[_Pending] = []
        now = self._clock.now()
        for p in pending:
            try:
                p.events = decide(p.state, p.command, _context(p.origin, now))
            except CommandRejected as rejected:
                if fresh:
                    p.answer = rejected
                else:
                    stale.append(p)
            else:
                if not p.events:
                    p.answer = Applied(p.state, p.state.position, changed=False)
        return stale

    def _command(self, p: _Pending, seal: OldTasks | None) -> AppendCommand:
        s = p.state
        events = p.events if seal is None else seal.events(s, p.events)
        lane = s.priority if isinstance(p.events[-1], TaskQueued | TaskRequeued) else ""
        return AppendCommand([self._stream(s.id, events, s.tenant, s.kind, s.queue, lane)])

    async def _tasks(self, streams: Mapping[UUID, Sequence[RecordedEvent]]) -> dict[UUID, TaskState]:
        tasks = {id_: events for id_, events in streams.items() if events[0].topic == "TaskCreated"}
        decoder = await self.sealing.decoder(event for events in tasks.values() for event in events)
        return {id_: self.fold(events, decoder) for id_, events in tasks.items()}

    def _settle(self, p: _Pending, outcome: Outcome) -> bool:
        if not isinstance(outcome, Appended):
            return False
        self._clock.observe(outcome.recorded_at)
        state = p.state
        for n, event in enumerate(p.events):
            state = evolve(state, event, at=outcome.recorded_at, position=outcome.first_position + n)
        p.answer = Applied(state, outcome.last_position, changed=True)
        return True

    async def _reload(self, stale: Sequence[_Pending]) -> None:
        states = await self.load([p.state.id for p in stale])
        for p in stale:
            if p.state.id in states:
                p.state = states[p.state.id]
            else:
                p.answer = TaskNotFound()

    async def _first_answer(self, replayed: Replayed, key: IdempotencyKey | None) -> Created:
        if key is None or replayed.fingerprint != key.fingerprint:
            raise IdempotencyKeyReused
        count = replayed.last_position - replayed.first_position + 1
        recorded = await self._log.read_after(
            replayed.first_position - 1, limit=count, upto=replayed.last_position
        )
        tasks = [self.fold([event]) for event in recorded]
        return Created(tasks, replayed.last_position, replayed=True)

    def _stream(  # noqa: PLR0917  the columns of an event, as everywhere
        self, id_: UUID, events: Sequence[EventRecord], tenant: str, kind: str, queue: str, lane: str = ""
    ) -> StreamAppend:
        stored = [self._mapper.encode(event) for event in events]
        return StreamAppend(id_, stored, tenant, kind, queue, lane)


def _context(origin: Origin, now: datetime) -> Context:
    return Context(
        now=now,
        uid=new_uid(),
        correlation_id=origin.correlation_id,
        causation_id=origin.causation_id,
        traceparent=origin.traceparent,
        actor=origin.actor,
    )


class ConcurrencyConflictRejected(WrongState):
    """The per-task form of ConcurrencyConflict."""

    retryable = True
