"""The fold of a whole range of streams at once, for a rebuild: each task's row is written once, as it ends.

Rows come out of the log in the order of their streams and go into a table without indexes; between the
two a stream's events become records without validation where that changes nothing (events.plain), and the
state after the last of them becomes the row. Any stream that is less plain than that (parked events, NUL
in a text, large states, a queue, whatever cannot be read or applied) goes the ordinary way: decode() and
fold(), so that those alone say what it gives. A test holds both ways to the same rows.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from struct import Struct
from typing import Any, Final, cast
from uuid import UUID

from psycopg import Connection, Copy, ServerCursor
from psycopg.rows import TupleRow

from events.append import RecordedEvent
from events.codec import EventMapper
from events.errors import UndecodableEvent
from events.plain import bare_record
from events.records import EventRecord, known_record
from events.task_state import TaskState, replay
from projector.fold import ACTIVITIES, Changes, FoldStopped, TaskRow, fold
from projector.follower import decode
from projector.plan import KeyRange, Plan
from projector.rows import COLUMNS
from projector.view import TasksView, schema_name

LARGE_BYTES: Final = 8 * 1024
"""A state above this is read with its stream alone, so that memory is bounded by rows read at a time."""
_FETCHED: Final = 2_000
"""Events read at a time."""
_LESS_PLAIN: Final = 200
"""Streams that go the ordinary way at a time."""
_NUL: Final = rb"\u0000"
"""How JSON spells what PostgreSQL's text cannot hold."""

_READ: Final = """
select uuid_send(originator_id), originator_version, topic,
       case when octet_length(state) <= %b::int then state end, notification_id,
       timestamptz_send(recorded_at)
from taskledger.task_events
where originator_id between %b::uuid and %b::uuid and notification_id <= %b::bigint
order by originator_id, originator_version
"""
_READ_STREAMS: Final = """
select originator_id, originator_version, topic, state, notification_id, recorded_at, tenant, kind, queue
from taskledger.task_events where originator_id = any(%b) and notification_id <= %b::bigint
order by notification_id
"""
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL's: a timestamptz is the number of microseconds since, in eight bytes."""
_microseconds: Final = Struct("!q").unpack
_MINUTE: Final = 60_000_000

StoredEvent = tuple[bytes, int, str, bytes | None, int, bytes]
"""Stream, version, topic, state (None: large), position, when recorded. What needs no looking into stays
in the bytes that PostgreSQL gives and takes."""


@dataclass(slots=True)
class Folded:
    """What a range adds to the totals; its rows are in the table."""

    totals: Changes = field(default_factory=lambda: Changes(0))
    events: int = 0
    stopped: tuple[int, str] | None = None
    """Position and reason of the first event that cannot be folded, if there is one."""

    def stop(self, error: FoldStopped) -> None:
        if self.stopped is None or error.position < self.stopped[0]:
            self.stopped = error.position, error.reason

    def add(self, other: "Folded") -> None:
        self.events += other.events
        self.totals.counts.update(other.totals.counts)
        self.totals.activity.update(other.totals.activity)
        self.totals.queues.update(other.totals.queues)
        if other.stopped is not None and (self.stopped is None or other.stopped < self.stopped):
            self.stopped = other.stopped


def fold_range(
    reader: Connection[TupleRow], writer: Connection[TupleRow], plan: Plan, keys: KeyRange
) -> Folded:
    """Writes the rows of these streams in the transaction that `writer` has open. Raises psycopg errors,
    and follower.NOT_APPLICABLE where a column cannot hold a value."""
    folded = Folded()
    parked = {event.originator_id.bytes for event in plan.passed_over.events}
    with reader.transaction(), reader.cursor(name="range", binary=True) as cursor:
        cursor.execute(_READ.encode(), (LARGE_BYTES, keys.first, keys.last, plan.upto))
        with writer.cursor().copy(_copy_into(plan.generation)) as copy:
            copy.set_types(_TYPES)
            left = _fold_plain(_fetched(cursor), copy, folded, parked)
        cursor.close()
        for ids in _in_portions(left):
            _fold_ordinary(reader, writer, plan, ids, folded)
    return folded


def _fetched(cursor: ServerCursor[TupleRow]) -> Generator[StoredEvent]:
    while rows := cursor.fetchmany(_FETCHED):
        yield from cast("list[StoredEvent]", rows)


def _fold_plain(
    events: Iterable[StoredEvent], copy: Copy, folded: Folded, parked: set[bytes]
) -> list[tuple[UUID, bool]]:
    """The streams that are not plain, and whether a state of theirs is large."""
    tasks, minutes = Counter[tuple[str, str, str, str]](), Counter[tuple[int, str]]()
    left: list[tuple[UUID, bool]] = []
    for key, stream in groupby(events, itemgetter(0)):
        stored = list(stream)
        state = None if key in parked else plain_state(stored)
        if state is None:
            left.append((UUID(bytes=key), any(event[3] is None for event in stored)))
            continue
        copy.write_row(row_values(state, stored[0][4]))
        tasks[state.tenant, state.queue, state.kind, state.status] += 1
        for event in stored:
            if event[2] in ACTIVITIES:
                minutes[_microseconds(event[5])[0] // _MINUTE, event[2]] += 1
        folded.events += len(stored)
    folded.totals.counts.update(tasks)
    for (minute, topic), count in minutes.items():
        folded.totals.activity[_EPOCH + timedelta(minutes=minute), ACTIVITIES[topic]] += count
    return left


def plain_state(stored: Sequence[StoredEvent]) -> TaskState | None:
    """Of a task's whole history; None if it takes more to know what it gives. Times of recording are
    still eight bytes in it, and the id sixteen: see row_values()."""
    history: list[tuple[EventRecord, Any, int]] = []
    for key, version, topic, state, position, at in stored:
        if state is None or (b"\\" in state and _NUL in state):
            return None
        cls = known_record(topic)
        record = None if cls is None else bare_record(cls, cast("UUID", key), version, state)
        if record is None:
            return None
        history.append((record, at, position))
    try:
        return replay(history)
    except UndecodableEvent:
        return None


def row_values(state: TaskState, created_position: int) -> list[Any]:
    """For COPY with _TYPES: what rows.values_of() gives; PostgreSQL's own bytes where they are at hand."""
    values = list(_FIELDS(state.__dict__ | {"created_position": created_position}))
    row = TaskRow(state, created_position)
    for place, value in _COMPUTED:
        values[place] = value(row)
    return values


_AS_RECORDED: Final = frozenset({"created_at", "queued_at", "started_at", "finished_at"})
"""The columns that evolve() fills with an event's time of recording."""
_TYPES: Final = ["bytea" if c.type == "uuid" or c.name in _AS_RECORDED else c.type for c in COLUMNS]
_FIELDS: Final = itemgetter(*(column.name for column in COLUMNS))
_COMPUTED: Final[list[tuple[int, Callable[[TaskRow], Any]]]] = [
    (place, column.value) for place, column in enumerate(COLUMNS) if column.type in {"bytea", "text[]"}
]
"""Columns that are more than a field of the state."""


def _copy_into(generation: int) -> bytes:
    names = ", ".join(column.name for column in COLUMNS)
    return f"copy {schema_name(generation)}.tasks ({names}) from stdin (format binary)".encode()


def _in_portions(streams: Sequence[tuple[UUID, bool]]) -> Generator[list[UUID]]:
    small = [task_id for task_id, large in streams if not large]
    for first in range(0, len(small), _LESS_PLAIN):
        yield small[first : first + _LESS_PLAIN]
    for task_id, large in streams:
        if large:
            yield [task_id]


def _fold_ordinary(
    reader: Connection[TupleRow],
    writer: Connection[TupleRow],
    plan: Plan,
    ids: Sequence[UUID],
    folded: Folded,
) -> None:
    rows = reader.cursor(binary=True).execute(_READ_STREAMS.encode(), (list(ids), plan.upto)).fetchall()
    decoded = decode([RecordedEvent(*row) for row in rows], EventMapper(), plan.passed_over)
    if decoded.stopped is not None:
        folded.stop(decoded.stopped)
    if not decoded.entries:
        return
    try:
        changes = fold(decoded.entries, {})
    except FoldStopped as stopped:
        folded.stop(stopped)
        return
    folded.events += len(rows)
    folded.add(Folded(totals=changes))
    TasksView(plan.generation).write(writer, Changes(changes.position, inserted=changes.inserted))
