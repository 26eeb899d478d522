"""The dispatcher's own fold of the log: which tasks are not settled, and where each stands. Pure.

A row is a task without its payload, and it is gone once the task is completed, dead, cancelled or
discarded. A requeue brings a task back whose kind, priority and timeout only its TaskCreated tells: then
its history is read from the log again. Keeping rows of all dead tasks instead would make the table, and
every refill of Redis, grow with the past; requeues are rare and come in batches of a thousand at most.

Every event goes through evolve(), so that the dispatcher cannot see a task otherwise than others do.

An event that means nothing to this release must not stop dispatch: its task is marked `unreadable` and
stays as it was, the other tasks go on. When the dispatcher starts again, a newer release may be able to
read it: see Relay.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, cast
from uuid import UUID

from events.append import RecordedEvent
from events.codec import is_task_topic
from events.errors import LogError, UndecodableEvent
from events.ids import as_uuid
from events.records import EventRecord
from events.task_events import Priority
from events.task_state import SETTLED, Status, TaskState, evolve

UNKNOWN: Final = "unknown"
"""State of a row whose very first readable event is missing."""

Decode = Callable[[RecordedEvent], EventRecord]

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_NO_SENSE: Final = (LogError, ArithmeticError, ValueError, TypeError)


class Row(NamedTuple):
    """A task that is not settled, as table `outstanding` keeps it."""

    task_id: UUID
    version: int
    state: str
    tenant: str
    queue: str
    kind: str
    priority: Priority
    queued_position: int
    queued_at: datetime | None
    due_at: datetime | None
    holder: str | None
    attempt: int
    timeout_seconds: float
    timeout_at: datetime | None
    """While it runs: when the running attempt has used up its time."""
    isolated: bool
    cancel_requested: bool
    unreadable: bool = False


@dataclass(frozen=True, slots=True)
class Poison:
    """An event that was passed over."""

    position: int
    topic: str
    task_id: UUID
    reason: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What a batch of events does to the table."""

    put: list[Row] = field(default_factory=list[Row])
    gone: list[UUID] = field(default_factory=list[UUID])
    poison: list[Poison] = field(default_factory=list[Poison])

    def queued_after(self, position: int) -> list[Row]:
        """The tasks that the batch queued and did not start again, in the order of their positions."""
        queued = [row for row in self.put if row.state == "queued" and row.queued_position > position]
        queued.sort(key=lambda row: row.queued_position)
        return queued


def tasks_before(events: Sequence[RecordedEvent]) -> set[UUID]:
    """The tasks of a batch that existed before it: fold() needs what the table holds of them."""
    first: dict[UUID, str] = {}
    for event in events:
        if is_task_topic(event.topic):
            first.setdefault(as_uuid(event.originator_id), event.topic)
    return {task for task, topic in first.items() if topic != "TaskCreated"}


def tasks_to_recall(events: Sequence[RecordedEvent], absent: Collection[UUID]) -> set[UUID]:
    """Those of `absent`, tasks that the table holds nothing of, whose history fold() needs: all that
    anything happens to but being discarded."""
    topics: dict[UUID, set[str]] = {}
    for event in events:
        task = as_uuid(event.originator_id)
        if task in absent and is_task_topic(event.topic):
            topics.setdefault(task, set()).add(event.topic)
    return {task for task, seen in topics.items() if seen != {"TaskDiscarded"}}


def recall(history: Sequence[RecordedEvent], upto: int, decode: Decode) -> Row | None:
    """The task as its history up to position `upto` makes it, settled or not; None if there is none.

    The row is unreadable where the history holds an event that means nothing to this release.
    """
    before = [event for event in history if event.id <= upto]
    if not before:
        return None
    folding = _Fold(as_uuid(before[0].originator_id), None, decode)
    for event in before:
        folding.apply(event)
    return folding.row()


def fold(
    rows: Mapping[UUID, Row], events: Sequence[RecordedEvent], decode: Decode, recalled: Mapping[UUID, Row]
) -> Changes:
    """What `events` (a run of the log) do to the table, which holds `rows` of their tasks; `recalled`
    are tasks that it holds nothing of, as the log has them before the batch."""
    histories: dict[UUID, list[RecordedEvent]] = {}
    for event in events:
        if is_task_topic(event.topic):
            histories.setdefault(as_uuid(event.originator_id), []).append(event)
    changes = Changes()
    for task, history in histories.items():
        before = rows.get(task)
        folding = _Fold(task, recalled.get(task) if before is None else before, decode)
        for event in history:
            folding.apply(event)
        changes.poison.extend(folding.poison)
        if folding.is_settled:
            if before is not None:
                changes.gone.append(task)
            continue
        after = folding.row()
        if after is not None and after != before:
            changes.put.append(after)
    return changes


class _Fold:
    """Of one task, from the row that it has."""

    def __init__(self, task: UUID, row: Row | None, decode: Decode) -> None:
        self._task = task
        self._state = None if row is None else _state(row)
        self._unreadable = row is not None and row.unreadable
        self._decode = decode
        self.poison: list[Poison] = []

    def apply(self, event: RecordedEvent) -> None:
        before = self._state
        if self._unreadable or (before is None and event.topic == "TaskDiscarded"):
            return  # what was discarded had been dead or cancelled before, and so is not in the table
        try:
            after = evolve(before, self._decode(event), at=event.recorded_at, position=event.id)
            if before is None:
                after = _as_appended(after, event)
            _check(after)
        except _NO_SENSE as error:
            reason = str(error) if isinstance(error, LogError) else type(error).__name__
            self.poison.append(Poison(event.id, event.topic, self._task, reason))
            self._unreadable = True
            if before is None:
                self._state = _placeholder(self._task, event)
        else:
            self._state = after

    @property
    def is_settled(self) -> bool:
        return self._state is not None and self._state.status in SETTLED and not self._unreadable

    def row(self) -> Row | None:
        return None if self._state is None else _row(self._state, unreadable=self._unreadable)


def _as_appended(state: TaskState, event: RecordedEvent) -> TaskState:
    """Tenant, kind and queue as the append's own columns have them, which are what readers filter by."""
    if (state.tenant, state.kind, state.queue) == (event.tenant, event.kind, event.queue):
        return state
    return replace(state, tenant=event.tenant, kind=event.kind, queue=event.queue)


def _check(state: TaskState) -> None:
    """Raises for what a column could not hold: a row that cannot be stored would stop every other."""
    if state.holder is not None and "\0" in state.holder:
        raise UndecodableEvent("the holder contains a NUL character")
    if not 0 <= state.attempt < 2**31:
        raise UndecodableEvent("the attempt is out of range")
    if state.due_at is not None:
        if state.due_at.tzinfo is None:
            raise UndecodableEvent("a time lacks its zone")
        state.due_at.astimezone(UTC)
    if state.started_at is not None:
        _ = state.started_at + timedelta(seconds=state.timeout_seconds)


def _row(state: TaskState, *, unreadable: bool) -> Row:
    timeout_at = None
    if state.status == "running" and state.started_at is not None:
        timeout_at = state.started_at + timedelta(seconds=state.timeout_seconds)
    return Row(
        task_id=state.id,
        version=state.version,
        state=state.status,
        tenant=state.tenant,
        queue=state.queue,
        kind=state.kind,
        priority=state.priority,
        queued_position=state.queued_position,
        queued_at=state.queued_at,
        due_at=None if state.due_at is None else state.due_at.astimezone(UTC),
        holder=state.holder,
        attempt=state.attempt,
        timeout_seconds=state.timeout_seconds,
        timeout_at=timeout_at,
        isolated=state.isolated,
        cancel_requested=state.cancel_requested,
        unreadable=unreadable,
    )


def _state(row: Row) -> TaskState:
    """As much of the task as evolve() looks at. Filled in at once, as evolve() does it: a frozen
    dataclass's own __init__ takes several times as long."""
    started_at = None
    if row.timeout_at is not None:
        started_at = row.timeout_at - timedelta(seconds=row.timeout_seconds)
    made = object.__new__(TaskState)
    made.__dict__.update(
        _BLANK,
        id=row.task_id,
        version=row.version,
        status=row.state,
        kind=row.kind,
        queue=row.queue,
        priority=row.priority,
        timeout_seconds=row.timeout_seconds,
        queued_position=row.queued_position,
        queued_at=row.queued_at,
        tenant=row.tenant,
        due_at=row.due_at,
        attempt=row.attempt,
        isolated=row.isolated,
        holder=row.holder,
        started_at=started_at,
        cancel_requested=row.cancel_requested,
    )
    return made


def _placeholder(task: UUID, event: RecordedEvent) -> TaskState:
    return TaskState(
        id=task,
        version=event.originator_version,
        position=event.id,
        status=cast("Status", UNKNOWN),
        kind=event.kind,
        payload=None,
        queue=event.queue,
        priority="normal",
        max_attempts=1,
        timeout_seconds=0.0,
        created_at=_EPOCH,
        queued_position=0,
        tenant=event.tenant,
    )


_BLANK: Final = vars(
    TaskState(
        id=UUID(int=0),
        version=0,
        position=0,
        status="queued",
        kind="",
        payload=None,
        queue="",
        priority="normal",
        max_attempts=1,
        timeout_seconds=0.0,
        created_at=_EPOCH,
        queued_position=0,
    )
)
