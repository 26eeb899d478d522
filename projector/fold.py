"""A batch of events -> the rows that are different after it. Pure.

Each task's events go through the one `evolve`; only its state after the batch becomes a row, however
many events it had.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from events.errors import LogError, UndecodableEvent
from events.queue_events import QueueEvent, QueuePaused
from events.records import EventRecord
from events.task_events import TaskCreated, TaskEvent
from events.task_state import TaskState, evolve

FOLD_VERSION: Final = 1
"""Raise it when the same events give other rows: generations folded before are then of another schema
version, and wait for a rebuild."""

ACTIVITIES: Final = {
    "TaskCreated": "created",
    "TaskStarted": "started",
    "TaskCompleted": "completed",
    "TaskFailed": "failed",
    "TaskDeadLettered": "dead",
    "TaskCancelled": "cancelled",
}
"""Topic -> the column of `activity` that counts it."""

CountKey = tuple[str, str, str, str]
"""Tenant, queue, kind, status."""
ActivityKey = tuple[datetime, str]
"""Minute, column."""
QueueKey = tuple[str, str]
"""Tenant, queue."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A place in the log. `event` is None where this release passes over an aggregate it does not know."""

    position: int
    at: datetime
    event: EventRecord | None


@dataclass(frozen=True, slots=True)
class TaskRow:
    state: TaskState
    created_position: int


@dataclass(frozen=True, slots=True)
class QueueRow:
    tenant: str
    queue: str
    version: int
    position: int
    paused: bool
    changed_at: datetime
    changed_by: str | None
    reason: str | None


class FoldStopped(LogError):  # noqa: N818  like its siblings, it says what happened
    """The event at `position` cannot be folded; everything before it can."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"position {position}: {reason}")
        self.position = position
        self.reason = reason


@dataclass(slots=True)
class Changes:
    """What a batch does to the read tables."""

    position: int
    """The checkpoint after it."""
    inserted: dict[UUID, TaskRow] = field(default_factory=dict[UUID, TaskRow])
    updated: dict[UUID, TaskRow] = field(default_factory=dict[UUID, TaskRow])
    counts: Counter[CountKey] = field(default_factory=Counter[CountKey])
    """Differences, not totals. Zeros are left out."""
    activity: Counter[ActivityKey] = field(default_factory=Counter[ActivityKey])
    queues: dict[QueueKey, QueueRow] = field(default_factory=dict[QueueKey, QueueRow])


def named(event: EventRecord) -> str:
    """As operators look for it; the same for what cannot be decoded, see events.codec."""
    return f"{event.TOPIC} {event.originator_id} version {event.originator_version}"


def needed(entries: Iterable[Entry]) -> list[UUID]:
    """The tasks whose present rows fold() needs: all that were not created within the batch."""
    seen: dict[UUID, bool] = {}
    for entry in entries:
        if isinstance(entry.event, TaskEvent):
            seen.setdefault(entry.event.originator_id, isinstance(entry.event, TaskCreated))
    return [task_id for task_id, created in seen.items() if not created]


def fold(entries: Sequence[Entry], current: Mapping[UUID, TaskRow]) -> Changes:
    """`entries` by rising position, at least one; `current` holds at least the rows of needed().

    Raises FoldStopped at an event that does not go on where its task stands.
    """
    changes = Changes(entries[-1].position)
    rows: dict[UUID, TaskRow] = {}
    for entry in entries:
        event = entry.event
        if isinstance(event, TaskEvent):
            before = rows.get(event.originator_id) or current.get(event.originator_id)
            rows[event.originator_id] = _evolved(before, event, entry)
            activity = ACTIVITIES.get(event.TOPIC)
            if activity is not None:
                changes.activity[entry.at.replace(second=0, microsecond=0), activity] += 1
        elif isinstance(event, QueueEvent):
            changes.queues[event.tenant, event.queue] = _queue_row(event, entry)
    for task_id, row in rows.items():
        before = current.get(task_id)
        _count(changes.counts, before, row)
        (changes.inserted if before is None else changes.updated)[task_id] = row
    changes.counts = Counter({key: n for key, n in changes.counts.items() if n != 0})
    return changes


def _evolved(before: TaskRow | None, event: TaskEvent, entry: Entry) -> TaskRow:
    state = None if before is None else before.state
    try:
        after = evolve(state, event, at=entry.at, position=entry.position)
    except UndecodableEvent as error:
        raise FoldStopped(entry.position, f"{named(event)}: {error}") from error
    return TaskRow(after, entry.position if before is None else before.created_position)


def _queue_row(event: QueueEvent, entry: Entry) -> QueueRow:
    return QueueRow(
        tenant=event.tenant,
        queue=event.queue,
        version=event.originator_version,
        position=entry.position,
        paused=isinstance(event, QueuePaused),
        changed_at=entry.at,
        changed_by=event.by,
        reason=event.reason,
    )


def _count(counts: Counter[CountKey], before: TaskRow | None, after: TaskRow) -> None:
    new = after.state
    if before is not None:
        old = before.state
        counts[old.tenant, old.queue, old.kind, old.status] -= 1
    counts[new.tenant, new.queue, new.kind, new.status] += 1
