"""Moves one generation of a tally along the log, a batch a transaction. Stands where a Follower stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from events.codec import EventMapper
from events.tracking import advance, check_log
from projector.fold import FoldStopped
from projector.follower import NOT_APPLICABLE, next_events
from projector.generations import Generation
from projector.parking import parked
from projector.tally import Fact, Tally
from projector.tally_view import Facts, add


class TallyFollower:
    """The fold of one generation. Whoever else moves the stored checkpoint makes the next step raise
    CheckpointConflict, and nothing of that step is stored."""

    def __init__(
        self, connection: Connection[TupleRow], mapper: EventMapper, tally: Tally, generation: Generation
    ) -> None:
        self.generation = generation
        self.checkpoint = generation.checkpoint
        self.at: datetime | None = None
        self.present: Sequence[str] | None = None
        """Nothing is known of other generations: the projector looks once a second."""
        self._connection = connection
        self._tally = tally
        self._facts = Facts(mapper)

    def step(self, *, upto: int | None = None) -> bool:
        """As Follower.step()."""
        batch = self._next(upto)
        if batch is None:
            return False
        with self._connection.transaction():
            self._store(batch)
        self.checkpoint, self.at = batch.position, batch.at
        return True

    def follow_within(self, upto: int) -> None:
        """As Follower.follow_within()."""
        while (batch := self._next(upto)) is not None:
            self._store(batch)
            self.checkpoint, self.at = batch.position, batch.at

    def announce(self) -> None:
        """Nobody is told: who reads a tally sees by its position how far it is."""

    def _next(self, upto: int | None) -> "_Batch | None":
        _, recorded = next_events(self._connection, self.checkpoint, upto)
        if not recorded:
            return None
        facts, stopped = self._facts.of(self._connection, recorded, parked(self._connection))
        if stopped is not None:
            recorded = [event for event in recorded if event.id < stopped.position]
            if not recorded:
                raise stopped
        return _Batch(recorded[-1].id, recorded[-1].recorded_at, facts)

    def _store(self, batch: "_Batch") -> None:
        """Rows and checkpoint, in the transaction that is open. Where one of several facts is to blame,
        none is added: its numbers are a tally's own doing."""
        name, tally = self.generation.name, self._tally
        check_log(self._connection, name)
        advance(self._connection, name, self.checkpoint, batch.position, at=batch.at)
        try:
            added = tally.fold(batch.facts)
        except Exception as error:  # a function of the user's own, which may raise anything
            raise _stopped(tally, batch, error) from error
        try:
            add(self._connection, tally, self.generation.number, added)
        except (*NOT_APPLICABLE, psycopg.ProgrammingError) as error:
            raise _stopped(tally, batch, error) from error


def _stopped(tally: Tally, batch: "_Batch", error: Exception) -> FoldStopped:
    what = f"projection {tally.name} cannot add it or one soon after it: {type(error).__name__}"
    return FoldStopped(batch.facts[0].position, what)


@dataclass(frozen=True, slots=True)
class _Batch:
    position: int
    at: datetime
    """`recorded_at` of the event there."""
    facts: list[Fact]
