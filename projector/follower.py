"""Moves one generation along the log, a batch a transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from events.append import RecordedEvent
from events.codec import EventMapper, is_task_topic, known_record
from events.errors import CheckpointConflict, UndecodableEvent, UnknownEvent
from events.statements import HIGHEST
from events.tracking import READ_CHANNEL, advance
from projector.fold import Changes, Entry, FoldStopped, fold, named, needed
from projector.generations import Generation
from projector.parking import Parked, parked
from projector.view import TasksView

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

_BATCH_END: Final = """
select max(s.notification_id) from (
    select n.notification_id,
           sum(n.size) over (order by n.notification_id) - n.size as before
    from (
        select e.notification_id, octet_length(e.state) as size from taskledger.task_events e
        where e.notification_id > %b::bigint and e.notification_id <= %b::bigint
        order by e.notification_id limit %b::bigint
    ) n
) s where s.before < %b::bigint
"""


class Recorder(Protocol):
    """What following takes of events.recorder.PostgresTaskRecorder."""

    def select_recorded(
        self, after: int, limit: int, upto: int | None = None
    ) -> Sequence[RecordedEvent]: ...


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
    """The fold of one generation. Keeps its checkpoint in memory: whoever else moves the stored one
    makes the next step raise CheckpointConflict, and nothing of that step is stored."""

    def __init__(
        self,
        connection: Connection[TupleRow],
        recorder: Recorder,
        mapper: EventMapper,
        generation: Generation,
    ) -> None:
        self.generation = generation
        self.checkpoint = generation.checkpoint
        self._connection = connection
        self._recorder = recorder
        self._mapper = mapper
        self._view = TasksView(generation.number)
        self._parked = parked(connection)

    def step(self, *, upto: int | None = None) -> bool:
        """Folds the next batch (not beyond position `upto`) in a transaction of its own and commits.

        False: there was nothing to fold. Raises FoldStopped at an event that cannot be applied, once
        everything before it is stored; CheckpointConflict; psycopg errors, after which the caller
        makes a new follower, as it cannot know how far this one got.
        """
        self._parked = parked(self._connection)
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
        self._parked = parked(self._connection)
        while (batch := self._next(upto)) is not None:
            self._store(batch)
            self.checkpoint = batch[-1].position

    def announce(self) -> None:
        """Wakes whoever waits for a read position. Once a batch, after its commit: NOTIFY takes a lock
        that all writers of the instance share."""
        self._connection.execute("select pg_notify(%s, %s)", (READ_CHANNEL, str(self.checkpoint)))

    def _next(self, upto: int | None) -> list[Entry] | None:
        bounds = (self.checkpoint, HIGHEST if upto is None else upto, BATCH_EVENTS, BATCH_BYTES)
        row = self._connection.execute(_BATCH_END, bounds, prepare=True).fetchone()
        if row is None or row[0] is None:
            return None
        recorded = self._recorder.select_recorded(self.checkpoint, BATCH_EVENTS, int(row[0]))
        decoded = decode(recorded, self._mapper, self._parked)
        if decoded.stopped is not None and not decoded.entries:
            raise decoded.stopped
        return decoded.entries

    def _commit(self, entries: Sequence[Entry]) -> None:
        with self._connection.transaction():
            self._store(entries)
        self.checkpoint = entries[-1].position

    def _store(self, entries: Sequence[Entry]) -> None:
        last = entries[-1]
        advance(self._connection, self.generation.name, self.checkpoint, last.position, at=last.at)
        if parked(self._connection) != self._parked:
            # Whoever parks holds the checkpoint meanwhile: from here on, nobody can.
            raise CheckpointConflict("an event was parked, or is no longer")
        self._view.write(self._connection, self._fold(entries))

    def _fold(self, entries: Sequence[Entry]) -> Changes:
        return fold(entries, self._view.load(self._connection, needed(entries)))


def _stopped(entry: Entry, error: Exception) -> FoldStopped:
    assert entry.event is not None  # noqa: S101  what is passed over cannot fail
    return FoldStopped(entry.position, f"{named(entry.event)}: {type(error).__name__}")
