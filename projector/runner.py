"""The projector's loop: keeps every generation that is not pruned at the head of the log."""

import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event
from typing import Final

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from events.codec import EventMapper
from events.errors import CheckpointConflict, LogRewound, SchemaNotReady, StoreUnavailable
from events.migrate import check_schema
from events.recorder import PostgresTaskRecorder
from events.statements import LOG_CHANNEL
from events.tracking import check_log
from events.witness import LOOK, Witness
from projector.fold import FoldStopped
from projector.follower import Follower
from projector.generations import Generation, ensure_live, generations
from projector.leadership import Leadership
from projector.parking import NOTHING, Parked, parked
from projector.view import PROJECTION
from taskledger import metrics
from taskledger.health import Heartbeat
from taskledger.postgres import SESSION, connect_sync
from taskledger.telemetry import get_logger

POLL_SECONDS: Final = 1.0
"""NOTIFY is a hint: the log is looked at this often anyway, less than the leader's ping allows."""
MAX_PAUSE_SECONDS: Final = 2.0
MEASURE_SECONDS: Final = 1.0
HALTED_SECONDS: Final = 1.0
"""How often an event that cannot be applied is tried again: somebody may have parked it."""

SILENT_SECONDS: Final = 30.0
"""What a batch, a lock and a connection attempt may take together at the worst."""

_SESSION: Final = f"{SESSION} -c synchronous_commit=off -c enable_seqscan=off"
"""A crash of the server may take the last batches and their checkpoint together; they are folded again.
A plan made while a table was almost empty would scan it until the next ANALYZE."""
_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
"""The last one: how the server says that it ended a session which stood still inside a transaction."""
_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    ready: bool
    waiting_for: str | None
    """In one line, why nothing moves; also set while another process leads, which is no fault."""
    checkpoint: int
    """Of the live generation, as last seen."""


STANDING_BY: Final = "another projector leads"


class Projector:
    """Made by the composition root; run() returns only when told to stop."""

    def __init__(self, dsn: str, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._dsn = dsn
        self._poll_seconds = poll_seconds
        self._mapper = EventMapper()
        self._status = Status(ready=False, waiting_for="PostgreSQL", checkpoint=0)
        self._pauses = _pauses()
        self._measure_again = 0.0
        self._parked: Parked = NOTHING
        self._witness = Witness()
        self.heartbeat = Heartbeat(SILENT_SECONDS)

    def status(self) -> Status:
        """From any thread."""
        return self._status

    def run(self, stop: Event) -> None:
        """Follows the log until `stop` is set, then finishes the batch under way and returns. What it
        cannot do now it says in one line, and tries again."""
        while not stop.is_set():
            try:
                self._follow(stop)
            except (*_LOST, StoreUnavailable) as error:
                self._wait_for("PostgreSQL", error)
            except (SchemaNotReady, LogRewound) as error:
                self._wait_for(str(error), None)
            except (CheckpointConflict, psycopg.errors.UndefinedTable) as error:
                # Another leader was faster, or a generation was pruned: look again at what there is.
                _logger.info("starting over", reason=_line(error))
            self.heartbeat.tick()
            if not stop.is_set():
                stop.wait(next(self._pauses))

    def _follow(self, stop: Event) -> None:
        """One session: from connecting to the first error or the stop."""
        recorder = PostgresTaskRecorder(lambda: connect_sync(self._dsn, name="projector-read"))
        with (
            closing(recorder),
            connect_sync(self._dsn, name="projector", options=_SESSION) as connection,
            Leadership(self._dsn, name="projector-leader") as leadership,
        ):
            check_schema(connection)
            self._check_log(connection)
            ensure_live(connection)
            connection.execute(f"listen {LOG_CHANNEL}")
            metrics.HALTED.clear()
            session = _Session(connection, recorder, leadership)
            while not stop.is_set():
                moved = False
                for generation in session.present():
                    moved |= self._advance(session, generation)
                self._measure(session, moved=moved)
                self._pauses = _pauses()
                leadership.ping()
                self.heartbeat.tick()
                if not moved:
                    _await_log(connection, self._poll_seconds)

    def _advance(self, session: "_Session", generation: Generation) -> bool:
        """One batch of one generation, and what there is to say about it. True if it moved."""
        blocked: str | None = None
        moved = False
        follower = session.follower(generation, self._mapper)
        if follower is not None:
            moved, blocked = session.step(follower)
            metrics.HALTED.labels(generation.name).set(blocked is not None)
        elif not generation.is_ours:
            blocked = (
                f"a rebuild: generation {generation.number} has another release's schema"
                " (run `taskledger rebuild`)"
            )
        if generation.state == "live":
            if moved and follower is not None:
                follower.announce()
            checkpoint = generation.checkpoint if follower is None else follower.checkpoint
            standing_by = STANDING_BY if follower is None else None
            self._say(Status(blocked is None, blocked or standing_by, checkpoint))
        return moved

    def _measure(self, session: "_Session", *, moved: bool) -> None:
        """Once a second. What is parked is told when it changes: no fault, but not to be forgotten."""
        again = time.monotonic() >= self._measure_again
        if moved or again:
            self._check_log(session.connection)
        if not again:
            return
        self._measure_again = time.monotonic() + MEASURE_SECONDS
        head = session.recorder.max_notification_id() or 0
        for generation in session.present():
            metrics.CHECKPOINT.labels(generation.name).set(generation.checkpoint)
            metrics.LAG.labels(generation.name).set(max(0, head - generation.checkpoint))
        now = parked(session.connection)
        metrics.PARKED.labels(PROJECTION).set(len(now.events))
        if now != self._parked:
            self._parked = now
            _logger.warning("events are parked", events=[str(event) for event in now.events])

    def _check_log(self, connection: Connection[TupleRow]) -> None:
        mark = self._witness.mark()
        row = connection.execute(LOOK.encode(), mark.parameters).fetchone()
        if row is not None:
            self._witness.check(row, mark)

    def _wait_for(self, what: str, error: Exception | None) -> None:
        reason = what if error is None else f"{what}: {_line(error)}"
        self._say(Status(ready=False, waiting_for=reason, checkpoint=self._status.checkpoint))

    def _say(self, status: Status) -> None:
        before, self._status = self._status, status
        if (before.ready, before.waiting_for) == (status.ready, status.waiting_for):
            return
        if status.waiting_for is None:
            _logger.info("following the log", checkpoint=status.checkpoint)
        elif status.ready:
            _logger.info("standing by", reason=status.waiting_for)
        else:
            _logger.warning("waiting", waiting_for=status.waiting_for, checkpoint=status.checkpoint)


@dataclass(slots=True)
class _Session:
    """What is known between connecting and the first error."""

    connection: Connection[TupleRow]
    recorder: PostgresTaskRecorder
    leadership: Leadership
    followers: dict[int, Follower] = field(default_factory=dict[int, Follower])
    halts: dict[int, tuple[float, str]] = field(default_factory=dict[int, tuple[float, str]])
    """Of a generation that stands: when to look again, and why it does."""
    verified: set[int] = field(default_factory=set[int])
    """Generations that were folded from this log, and not from the one before a restore."""

    def present(self) -> list[Generation]:
        """The generations to keep up, live first; a building one is the rebuild's own. Forgets those
        that were pruned."""
        found = [g for g in generations(self.connection) if g.state != "building"]
        for gone in self.followers.keys() - {g.number for g in found}:
            name = self.followers.pop(gone).generation.name
            self.halts.pop(gone, None)
            self.leadership.resign(gone)
            for gauge in (metrics.CHECKPOINT, metrics.LAG, metrics.HALTED):
                gauge.remove(name)
        return sorted(found, key=lambda g: g.state != "live")

    def follower(self, generation: Generation, mapper: EventMapper) -> Follower | None:
        """None where the generation is another process's, or another release's."""
        known = self.followers.get(generation.number)
        if known is None and generation.is_ours and self.leadership.leads(generation.number):
            known = Follower(self.connection, self.recorder, mapper, generation)
            self.followers[generation.number] = known
        return known

    def step(self, follower: Follower) -> tuple[bool, str | None]:
        """Whether it moved, and why it cannot, with the way out. One that stands is not tried again at
        each event that is appended: that would read the same batch over and over."""
        number = follower.generation.number
        again_at, reason = self.halts.get(number, (0.0, ""))
        if time.monotonic() < again_at:
            return False, reason
        try:
            if number not in self.verified:
                check_log(self.connection, follower.generation.name)
                self.verified.add(number)
            moved = follower.step()
        except FoldStopped as error:
            reason = (
                f"a release that can apply the event at {error}"
                f" (or `taskledger park {error.position} --reason …`)"
            )
        except LogRewound as error:
            reason = f"a rebuild: {error}; the log was restored (run `taskledger rebuild`)"
        else:
            self.halts.pop(number, None)
            return moved, None
        self.halts[number] = (time.monotonic() + HALTED_SECONDS, reason)
        return False, reason


def _await_log(connection: Connection[TupleRow], seconds: float) -> None:
    # To the end: what is left of the notifications would be a wake-up each.
    deque(connection.notifies(timeout=seconds, stop_after=1), maxlen=0)


def _pauses() -> Iterator[float]:
    """Full jitter: projectors that lost the database together do not come back together."""
    longest = 0.1
    while True:
        yield random.uniform(0, longest)  # noqa: S311  jitter
        longest = min(2 * longest, MAX_PAUSE_SECONDS)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
