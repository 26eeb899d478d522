"""The projector's loop: keeps every generation that is not pruned at the head of the log."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Final

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from events import notice
from events.codec import EventMapper
from events.errors import CheckpointConflict, LogRewound, SchemaNotReady, StoreUnavailable
from events.migrate import check_schema
from events.statements import HIGHEST, LOG_CHANNEL
from events.tracking import WANTED_CHANNEL, check_log
from events.witness import LOOK, Witness
from projector.fold import FoldStopped
from projector.follower import BATCH_EVENTS
from projector.generations import Generation, ensure_live, generations, marks
from projector.kept import READ_TABLES, Following, Kept
from projector.leadership import Leadership
from projector.parking import NOTHING, Parked, parked
from projector.view import PROJECTION
from projector.watchdog import ANSWER_SECONDS, Watchdog, WatchedConnection
from taskledger import metrics
from taskledger.health import Heartbeat
from taskledger.postgres import KEYED, connect_as
from taskledger.telemetry import get_logger

POLL_SECONDS: Final = 1.0
"""NOTIFY is a hint: the log is looked at this often anyway, less than the leader's ping allows."""
MAX_PAUSE_SECONDS: Final = 2.0
MEASURE_SECONDS: Final = 1.0
HALTED_SECONDS: Final = 1.0
"""How often an event that cannot be applied is tried again: somebody may have parked it."""

SILENT_SECONDS: Final = 30.0
"""What a batch, a lock and a connection attempt may take together at the worst."""

BUSY_EVENTS: Final = 10
GATHER_SECONDS: Final = 0.02
"""A batch of as many events shows load: the next one begins no sooner than this after it, and then holds
what has come meanwhile. Most tasks then begin and end within one batch, and cost one row instead of three
versions of it. Nothing waits where less comes, nor where there is a full batch to catch up with."""

QUIET_SECONDS: Final = 0.02
"""How much later it is shown that tasks were created or started, if nobody wants to see it and nothing
follows: a task that ends sooner is one row and one batch instead of three, and the first two would take the
processor from those who are about to run it."""

_SESSION: Final = f"{KEYED} -c synchronous_commit=off"
"""A crash of the server may take the last batches and their checkpoint together; they are folded again."""
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

    def __init__(
        self,
        dsn: str,
        kept: Kept = READ_TABLES,
        *,
        poll_seconds: float = POLL_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._dsn = dsn
        self._kept = kept
        self._which = {} if kept is READ_TABLES else {"projection": kept.definition.projection}
        self._poll_seconds = poll_seconds
        self._answer_seconds = answer_seconds
        self._mapper = EventMapper()
        self._status = Status(ready=False, waiting_for="PostgreSQL", checkpoint=0)
        self._pauses = _pauses()
        self._measure_again = 0.0
        self._parked: Parked = NOTHING
        self._witness = Witness()
        self._named: set[str] = set()
        """The generations of which it was told whether they stand."""
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
        with (
            connect_as(WatchedConnection, self._dsn, name="projector", options=_SESSION) as connection,
            Leadership(self._dsn, name="projector-leader") as leadership,
            Watchdog(connection, leadership.connection, seconds=self._answer_seconds),
        ):
            check_schema(connection)
            self._check_log(connection)
            ensure_live(connection, self._kept.definition)
            connection.execute(f"listen {LOG_CHANNEL}")
            connection.execute(f"listen {WANTED_CHANNEL}")
            for name in self._named:
                metrics.HALTED.remove(name)
            self._named.clear()
            session = _Session(connection, leadership, self._kept)
            while not stop.is_set():
                began = time.monotonic()
                folded = 0
                for generation in session.present():
                    folded = max(folded, self._advance(session, generation))
                self._measure(session)
                self._pauses = _pauses()
                leadership.ping()
                self.heartbeat.tick()
                if folded >= BATCH_EVENTS:
                    continue
                if folded >= BUSY_EVENTS:
                    stop.wait(max(0.0, began + GATHER_SECONDS - time.monotonic()))
                if not _await_log(connection, session.reached(), self._poll_seconds):
                    session.look_again()

    def _advance(self, session: "_Session", generation: Generation) -> int:
        """One batch of one generation, and what there is to say about it. How far it moved."""
        blocked: str | None = None
        moved = 0
        follower = session.follower(generation, self._mapper)
        if follower is not None:
            moved, blocked = session.step(follower)
            metrics.HALTED.labels(generation.name).set(blocked is not None)
            self._named.add(generation.name)
            if moved:
                self._witness.saw(follower.checkpoint, follower.at)
        elif not generation.is_ours:
            blocked = (
                f"a rebuild: generation {generation.number} has another release's schema"
                f" (run `{self._kept.rebuild_command}`)"
            )
        if generation.state == "live":
            checkpoint = generation.checkpoint if follower is None else follower.checkpoint
            standing_by = STANDING_BY if follower is None else None
            self._say(Status(blocked is None, blocked or standing_by, checkpoint))
        return moved

    def _measure(self, session: "_Session") -> None:
        """Once a second. What is parked is told when it changes: no fault, but not to be forgotten."""
        if time.monotonic() < self._measure_again:
            return
        self._measure_again = time.monotonic() + MEASURE_SECONDS
        self._check_log(session.connection)
        head = self._witness.mark().position
        session.look_again()
        for generation in session.present():
            metrics.CHECKPOINT.labels(generation.name).set(generation.checkpoint)
            metrics.LAG.labels(generation.name).set(max(0, head - generation.checkpoint))
        if self._kept is not READ_TABLES:
            return
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
            _logger.info("following the log", checkpoint=status.checkpoint, **self._which)
        elif status.ready:
            _logger.info("standing by", reason=status.waiting_for, **self._which)
        else:
            about = {"waiting_for": status.waiting_for, "checkpoint": status.checkpoint, **self._which}
            _logger.warning("waiting", **about)


@dataclass(slots=True)
class _Session:
    """What is known between connecting and the first error."""

    connection: Connection[TupleRow]
    leadership: Leadership
    kept: Kept
    followers: dict[int, Following] = field(default_factory=dict[int, Following])
    halts: dict[int, tuple[float, str]] = field(default_factory=dict[int, tuple[float, str]])
    """Of a generation that stands: when to look again, and why it does."""
    verified: set[int] = field(default_factory=set[int])
    """Generations that were folded from this log, and not from the one before a restore."""

    _present: list[Generation] | None = None
    _marks: list[str] = field(default_factory=list[str])

    def look_again(self) -> None:
        """What present() knows may no longer be so."""
        self._present = None

    def present(self) -> list[Generation]:
        """The generations to keep up, live first; a building one is the rebuild's own. Forgets those
        that were pruned."""
        if self._present is None:
            self._present = self._look()
        return self._present

    def reached(self) -> int:
        """Up to where none of them has anything left to do; who stands by only looks now and then."""
        return min((f.checkpoint for f in self.followers.values()), default=HIGHEST)

    def _look(self) -> list[Generation]:
        there = generations(self.connection, self.kept.definition)
        self._marks = marks(there)
        found = [g for g in there if g.state != "building"]
        for gone in self.followers.keys() - {g.number for g in found}:
            name = self.followers.pop(gone).generation.name
            self.halts.pop(gone, None)
            self.leadership.resign(gone)
            for gauge in (metrics.CHECKPOINT, metrics.LAG, metrics.HALTED):
                gauge.remove(name)
        return sorted(found, key=lambda g: g.state != "live")

    def follower(self, generation: Generation, mapper: EventMapper) -> Following | None:
        """None where the generation is another process's, or another release's."""
        known = self.followers.get(generation.number)
        if known is None and generation.is_ours and self.leadership.leads(generation.number):
            known = self.kept.follow(self.connection, mapper, generation)
            self.followers[generation.number] = known
        return known

    def step(self, follower: Following) -> tuple[int, str | None]:
        """How far it moved, and why it cannot, with the way out. One that stands is not tried again at
        each event that is appended: that would read the same batch over and over."""
        number = follower.generation.number
        again_at, reason = self.halts.get(number, (0.0, ""))
        if time.monotonic() < again_at:
            return 0, reason
        before = follower.checkpoint
        try:
            if number not in self.verified:
                check_log(self.connection, follower.generation.name)
                self.verified.add(number)
            follower.step()
        except FoldStopped as error:
            ways = (
                f"`taskledger park {error.position} --reason …`"
                if self.kept is READ_TABLES
                else f"another definition, and `{self.kept.rebuild_command}`"
            )
            reason = f"a release that can apply the event at {error} (or {ways})"
        except LogRewound as error:
            reason = f"a rebuild: {error}; the log was restored (run `{self.kept.rebuild_command}`)"
        else:
            self.halts.pop(number, None)
            if follower.present is not None and follower.present != self._marks:
                self.look_again()  # one was switched, dropped or begun
            return follower.checkpoint - before, None
        self.halts[number] = (time.monotonic() + HALTED_SECONDS, reason)
        return 0, reason


def _await_log(connection: Connection[TupleRow], position: int, seconds: float) -> bool:
    """Whether the log is told to go on beyond the position. What was notified while a batch was under way
    has been kept, and was most likely read with it. That tasks were created or started waits for what
    follows, up to QUIET_SECONDS, unless somebody wants to see it."""
    deadline = time.monotonic() + seconds
    quiet = False
    while (left := deadline - time.monotonic()) > 0:
        # To the end: what is left of the notifications would be a wake-up each.
        for notification in list(connection.notifies(timeout=left, stop_after=1)):
            head = notice.head(notification.payload)
            if head is not None and head <= position:
                continue
            said = notice.read(notification.payload)
            if notification.channel == WANTED_CHANNEL or said is None or not said.quiet:
                return True
            if not quiet:
                quiet, deadline = True, min(deadline, time.monotonic() + QUIET_SECONDS)
    return quiet


def _pauses() -> Iterator[float]:
    """Full jitter: projectors that lost the database together do not come back together."""
    longest = 0.1
    while True:
        yield random.uniform(0, longest)  # noqa: S311  jitter
        longest = min(2 * longest, MAX_PAUSE_SECONDS)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
