"""Asks the log, the leases and the read tables for the facts."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Final, get_args
from uuid import UUID

from events.append import RecordedEvent
from events.codec import EventMapper
from events.errors import ReadModelLagging, SchemaNotReady, UndecodableEvent, UnknownEvent
from events.ids import DEFAULT_TENANT, queue_id
from events.queue_events import QueueEvent
from events.records import EventRecord
from events.task_events import (
    Priority,
    TaskCancelled,
    TaskCancelRequested,
    TaskDeadLettered,
    TaskDiscarded,
    TaskFailed,
)
from events.task_state import TaskState, evolve
from events.vault import OFF, Decoder, Vault, without_erased
from query_side.errors import AsOfOutOfReach
from query_side.explain.facts import MOST_AHEAD, Ahead, Facts, Failure, Holder, Told, Workers
from query_side.explain.reasons import explain
from query_side.history import History
from query_side.read_model import ReadModel, Row, Snapshot, statement
from query_side.shapes import Json, recorded

_PRIORITIES: Final[tuple[str, ...]] = get_args(Priority)
"""Highest first."""
_TRIES: Final = 3
"""A task that moves on while we look is looked at again; one that always does is running well."""
_TOLD: Final = (TaskCancelRequested, TaskCancelled, TaskDiscarded)


@dataclass(frozen=True, slots=True)
class _Story:
    """What the task's own events tell."""

    state: TaskState
    failures: list[Failure]
    told: Told | None
    dead_reason: str | None
    unreadable_position: int | None


class Explanations:
    """`external`: kinds whose workers claim over HTTP."""

    def __init__(
        self, model: ReadModel, history: History, external: Container[str], vault: Vault = OFF
    ) -> None:
        self._model = model
        self._history = history
        self._external = external
        self._mapper = EventMapper()
        self._vault = vault

    async def of(self, task_id: UUID) -> tuple[Snapshot, Json]:
        """Raises TaskNotFound, and AsOfOutOfReach where this release cannot read its first event."""
        log, facts = await self._facts(task_id)
        causes = explain(facts)
        return log, {
            "id": facts.state.id,
            "status": facts.state.status,
            "summary": causes[0].message,
            "causes": [
                {"code": cause.code, "message": cause.message, "evidence": cause.evidence}
                for cause in causes
            ],
            "advice": next((cause.advice for cause in causes if cause.advice is not None), None),
            "position": log.token,
        }

    async def _facts(self, task_id: UUID) -> tuple[Snapshot, Facts]:
        log, story, row = await self._look(task_id)
        state = story.state
        facts = Facts(
            state=state,
            now=row["now"],
            tag=log.tag,
            failures=story.failures,
            told=story.told,
            dead_reason=story.dead_reason,
            unreadable_position=story.unreadable_position,
            paused=self._paused(row),
            dispatched_to=int(row["dispatched_to"] or 0),
            workers=Workers(*(int(row[n]) for n in ("live", "of_queue", "able", "slots", "running"))),
            external=state.kind in self._external,
            holder=_holder(row),
        )
        return log, replace(facts, ahead=await self._ahead(state)) if state.status == "queued" else facts

    async def _look(self, task_id: UUID) -> tuple[Snapshot, _Story, Row]:
        """The task and what surrounds it, which are two looks: they belong together where it has not gone
        on between them."""
        tries = 0
        while True:
            log, events = await self._history.stream(task_id)
            story = self._story(events, log, await self._vault.decoder(events))
            row = await self._around(story.state)
            tries += 1
            if tries == _TRIES or row["version"] == events[-1].originator_version:
                return log, story, row

    def _story(self, events: Sequence[RecordedEvent], log: Snapshot, decoder: Decoder) -> _Story:
        state: TaskState | None = None
        failures: list[Failure] = []
        told, dead_reason, unreadable = None, None, None
        for event in events:
            try:
                record, _ = without_erased(decoder.decode(event))
                state = evolve(state, record, at=event.recorded_at, position=event.id)
            except (UnknownEvent, UndecodableEvent):
                unreadable = event.id
                break
            if isinstance(record, TaskFailed):
                failures.append(_failure(record, event))
            elif isinstance(record, TaskDeadLettered):
                dead_reason = record.reason
            elif isinstance(record, _TOLD):
                told = _told(record, event)
        if state is None:
            raise AsOfOutOfReach(
                f"this release cannot apply the task's event at {log.token_of(events[0].id)}"
            )
        return _Story(state, failures, told, dead_reason, unreadable)

    async def _around(self, state: TaskState) -> Row:
        parameters = {
            "id": state.id,
            "queue_id": queue_id(state.tenant, state.queue),
            "holder": state.holder,
            "queue": state.queue,
            "kind": state.kind,
        }
        return (await self._model.read(statement("circumstances"), parameters))[0]

    def _paused(self, row: Row) -> Told | None:
        if not row["paused"]:
            return None
        event = recorded(row)
        record = self._mapper.decode(event)
        return _told(record, event) if isinstance(record, QueueEvent) else None

    async def _ahead(self, state: TaskState) -> Ahead | None:
        """Without read tables there is nothing to count in, and all else is worth telling."""
        parameters = {
            "higher": list(_PRIORITIES[: _PRIORITIES.index(state.priority)]),
            "priority": state.priority,
            "queue": state.queue,
            "tenant": DEFAULT_TENANT,
            "queued_position": state.queued_position,
            "limit": MOST_AHEAD + 1,
        }
        try:
            snapshot, rows = await self._model.fetch(statement("ahead"), parameters)
        except (ReadModelLagging, SchemaNotReady):
            return None
        counted = {row["priority"]: int(row["tasks"]) for row in rows}
        same = counted.pop(state.priority)
        return Ahead(sum(counted.values()), same, snapshot.checkpoint)


def _holder(row: Row) -> Holder | None:
    if row["silent_seconds"] is None:
        return None
    return Holder(row["silent_seconds"], row["lease_seconds"], row["info"])


def _failure(record: TaskFailed, event: RecordedEvent) -> Failure:
    error = record.error
    kind, message = (None, None) if error is None else (error.type, error.message)
    return Failure(record.attempt, record.cause, kind, message, event.recorded_at, event.id)


def _told(record: EventRecord, event: RecordedEvent) -> Told:
    return Told(getattr(record, "by", None), getattr(record, "reason", None), event.recorded_at, event.id)
