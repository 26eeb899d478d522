"""Moves one generation along the log, a batch a statement."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final
from uuid import UUID

import psycopg
from psycopg import Connection, RawCursor
from psycopg.rows import TupleRow

from events.append import RecordedEvent
from events.codec import EventMapper, is_task_topic
from events.errors import CheckpointConflict, LogRewound, UndecodableEvent, UnknownEvent
from events.records import known_record
from events.statements import HIGHEST
from events.task_state import SETTLED
from events.tracking import READ_CHANNEL, advance
from projector.fold import Changes, Entry, FoldStopped, TaskRow, fold, named, needed
from projector.generations import Fence, Generation, fence
from projector.parking import NOTHING, Parked, parked
from projector.rows import without_payload
from projector.view import Move, TasksView

BATCH_EVENTS: Final = 2_000
BATCH_BYTES: Final = 8 * 1024 * 1024
"""Of event state: what a batch holds in memory is a small multiple of it."""

NOT_APPLICABLE: Final = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    ArithmeticError,
    ValueError,
    TypeError,
)
"""What folding or writing an event raises when it is the event that is to blame: a value that no column
can hold, a row that is there already."""

CACHED_ROWS: Final = 5_000
"""Of tasks that are not settled, without payload: a few MB."""

_BATCH: Final = b"""
select known.recorded_at, e.originator_id, e.originator_version, e.topic, e.state, e.notification_id,
       e.recorded_at, e.tenant, e.kind, e.queue
from (select $1::int8 as position) checkpoint
left join taskledger.task_events known on known.notification_id = checkpoint.position
left join lateral (
    select s.* from (
        select n.*, sum(octet_length(n.state)) over (order by n.notification_id) - octet_length(n.state)
               as before
        from (
            select originator_id, originator_version, topic, state, notification_id, recorded_at, tenant,
                   kind, queue
            from taskledger.task_events
            where notification_id > checkpoint.position and notification_id <= $2::int8
            order by notification_id limit $3::int8
        ) n
    ) s where s.before < $4::int8
) e on true
order by e.notification_id
"""
"""What follows the checkpoint, until the limit of events or the one of bytes is passed, and by what the
event at the checkpoint is known again: see events.tracking.check_log()."""


def next_events(
    connection: Connection[TupleRow], checkpoint: int, upto: int | None
) -> tuple[datetime | None, list[RecordedEvent]]:
    """A batch of what follows, and when the event at the checkpoint was recorded, if it is there."""
    bounds = (checkpoint, HIGHEST if upto is None else upto, BATCH_EVENTS, BATCH_BYTES)
    rows = RawCursor(connection).execute(_BATCH, bounds, prepare=True, binary=True).fetchall()
    recorded = [] if rows[0][1] is None else [RecordedEvent.of_row(row[1:]) for row in rows]
    return rows[0][0], recorded


@dataclass(frozen=True, slots=True)
class Decoded:
    entries: list[Entry]
    stopped: FoldStopped | None
    """Why the events after the last entry cannot be folded, if so."""


def decode(recorded: Sequence[RecordedEvent], mapper: EventMapper, passed_over: Parked) -> Decoded:
    """Up to the first event that must not be passed over: a `Task…` topic, or a version of any known
    one, that this release does not know, or a state that cannot be read. Unless it is parked."""
    entries: list[Entry] = []
    for event in recorded:
        unknown = known_record(event.topic) is None and not is_task_topic(event.topic)
        try:
            record = None if unknown or passed_over.covers(event) else mapper.decode(event)
        except (UnknownEvent, UndecodableEvent) as error:
            return Decoded(entries, FoldStopped(event.id, str(error)))
        entries.append(Entry(event.id, event.recorded_at, record))
    return Decoded(entries, None)


class Follower:
    """The fold of one generation. Keeps its checkpoint in memory, and the rows of tasks that are not
    settled: whoever else moves or touches the stored checkpoint makes the next step raise
    CheckpointConflict, and nothing of that step is stored."""

    def __init__(
        self, connection: Connection[TupleRow], mapper: EventMapper, generation: Generation
    ) -> None:
        self.generation = generation
        self.checkpoint = generation.checkpoint
        self.at: datetime | None = None
        """`recorded_at` of the event there, once a step has moved it."""
        self.present: Sequence[str] | None = None
        """The generations there were at the last commit, as marks() gives them."""
        self._connection = connection
        self._mapper = mapper
        self._view = TasksView(generation.number)
        self._parked = NOTHING
        self._fence: Fence | None = None
        self._rows: dict[UUID, TaskRow] = {}

    def step(self, *, upto: int | None = None) -> bool:
        """Folds the next batch (not beyond position `upto`) and writes it with its checkpoint.

        False: there was nothing to fold. Raises FoldStopped at an event that cannot be applied, once
        everything before it is stored, LogRewound and psycopg errors; CheckpointConflict, after which the
        caller makes a new follower, as it cannot know how far this one got.
        """
        try:
            return self._step(upto)
        except BaseException:
            self._forget()
            raise

    def _step(self, upto: int | None) -> bool:
        if self._fence is None:
            self._fence = self._look()
        batch = self._next(upto)
        if batch is None:
            return False
        while True:
            try:
                self._commit(batch)
            except FoldStopped as stopped:
                before = [entry for entry in batch if entry.position < stopped.position]
                if not before:
                    raise
                batch = before
            except NOT_APPLICABLE as error:
                # One of them is to blame. What can be stored is; the next step comes nearer.
                if len(batch) == 1:
                    raise _stopped(batch[0], error) from error
                batch = batch[: len(batch) // 2]
            else:
                return True

    def follow_within(self, upto: int) -> None:
        """As step(), up to exactly `upto`, in the transaction that the caller has open."""
        self._forget()
        self._parked = parked(self._connection)
        while (batch := self._next(upto)) is not None:
            self._store(batch)
            self.checkpoint = batch[-1].position

    def announce(self) -> None:
        """Wakes whoever waits for a read position, as each step of a live generation does by itself."""
        self._connection.execute("select pg_notify(%s, %s)", (READ_CHANNEL, str(self.checkpoint)))

    def _look(self) -> Fence:
        """First the fence, then what it guards: whoever parks an event touches the checkpoint."""
        found = fence(self._connection, self.generation)
        if found is None or found.position != self.checkpoint:
            raise CheckpointConflict(f"{self.generation.name} is no longer at {self.checkpoint}")
        self._parked = parked(self._connection)
        return found

    def _forget(self) -> None:
        self._fence = None
        self._rows.clear()

    def _next(self, upto: int | None) -> list[Entry] | None:
        at, recorded = next_events(self._connection, self.checkpoint, upto)
        known = None if self._fence is None else self._fence.at
        if known is not None and at != known:
            raise LogRewound(f"at position {self.checkpoint} is no longer the event that was read")
        if not recorded:
            return None
        decoded = decode(recorded, self._mapper, self._parked)
        if decoded.stopped is not None and not decoded.entries:
            raise decoded.stopped
        return decoded.entries

    def _commit(self, entries: Sequence[Entry]) -> None:
        assert self._fence is not None  # noqa: S101  _step() has looked
        changes, last = self._fold(entries), entries[-1]
        move = Move(self.generation.name, self.checkpoint, self._fence.touched, last.position, last.at)
        moved = self._view.write(self._connection, changes, move)
        if moved is None:
            raise CheckpointConflict(f"{self.generation.name} was moved, or an event parked or taken back")
        self.checkpoint, self.at = last.position, last.at
        self.present = moved.generations
        self._fence = Fence(last.position, moved.fence, last.at)
        self._remember(changes)

    def _store(self, entries: Sequence[Entry]) -> None:
        last = entries[-1]
        advance(self._connection, self.generation.name, self.checkpoint, last.position, at=last.at)
        self._view.write(self._connection, self._fold(entries))

    def _fold(self, entries: Sequence[Entry]) -> Changes:
        ids = needed(entries)
        current = {task_id: self._rows[task_id] for task_id in ids if task_id in self._rows}
        current |= self._view.load(self._connection, [i for i in ids if i not in current])
        return fold(entries, current)

    def _remember(self, changes: Changes) -> None:
        """The rows whose next events are likely to come soon, the newest CACHED_ROWS of them."""
        for task_id, row in (*changes.inserted.items(), *changes.updated.items()):
            self._rows.pop(task_id, None)
            if row.state.status not in SETTLED and row.state.error is None:
                self._rows[task_id] = without_payload(row)
        for task_id in list(islice(self._rows, max(0, len(self._rows) - CACHED_ROWS))):
            del self._rows[task_id]


def _stopped(entry: Entry, error: Exception) -> FoldStopped:
    assert entry.event is not None  # noqa: S101  what is passed over cannot fail
    return FoldStopped(entry.position, f"{named(entry.event)}: {type(error).__name__}")
