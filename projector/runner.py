"""The projector's loop: keeps every generation that is not pruned at the head of the log."""

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Final

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from events.codec import EventMapper
from events.errors import CheckpointConflict, LogError, SchemaNotReady, StoreUnavailable
from events.migrate import check_schema
from events.recorder import PostgresTaskRecorder
from events.statements import LOG_CHANNEL
from projector.follower import Follower
from projector.generations import Generation, ensure_live, generations
from projector.leadership import Leadership
from taskledger.health import Heartbeat
from taskledger.postgres import SESSION, connect_sync
from taskledger.telemetry import get_logger

POLL_SECONDS: Final = 1.0
"""NOTIFY is a hint: the log is looked at this often anyway, less than the leader's ping allows."""
MAX_PAUSE_SECONDS: Final = 2.0

SILENT_SECONDS: Final = 30.0
"""What a batch, a lock and a connection attempt may take together at the worst."""

_SESSION: Final = f"{SESSION} -c synchronous_commit=off -c enable_seqscan=off"
"""A crash of the server may take the last batches and their checkpoint together; they are folded again.
A plan made while a table was almost empty would scan it until the next ANALYZE."""
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
            except (psycopg.OperationalError, psycopg.InterfaceError, StoreUnavailable) as error:
                self._wait_for("PostgreSQL", error)
            except SchemaNotReady as error:
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
            ensure_live(connection)
            connection.execute(f"listen {LOG_CHANNEL}")
            followers: dict[int, Follower] = {}
            while not stop.is_set():
                moved = False
                for generation in _present(connection, followers, leadership):
                    follower = followers.get(generation.number)
                    if follower is None and generation.is_ours and leadership.leads(generation.number):
                        follower = Follower(connection, recorder, self._mapper, generation)
                        followers[generation.number] = follower
                    moved |= self._advance(generation, follower)
                self._pauses = _pauses()
                leadership.ping()
                self.heartbeat.tick()
                if not moved:
                    _await_log(connection, self._poll_seconds)

    def _advance(self, generation: Generation, follower: Follower | None) -> bool:
        """One batch of one generation, and what there is to say about it. True if it moved."""
        blocked: str | None = None
        moved = False
        if follower is not None:
            try:
                moved = follower.step()
            except LogError as error:
                blocked = f"a release that can read the log: {error}"
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


def _present(
    connection: Connection[TupleRow], followers: dict[int, Follower], leadership: Leadership
) -> list[Generation]:
    """The generations to keep up, live first; a building one is the rebuild's own. Forgets followers
    of those that were pruned."""
    found = [g for g in generations(connection) if g.state != "building"]
    for gone in followers.keys() - {g.number for g in found}:
        del followers[gone]
        leadership.resign(gone)
    return sorted(found, key=lambda g: g.state != "live")


def _await_log(connection: Connection[TupleRow], seconds: float) -> None:
    for _ in connection.notifies(timeout=seconds, stop_after=1):
        return


def _pauses() -> Iterator[float]:
    """Full jitter: projectors that lost the database together do not come back together."""
    longest = 0.1
    while True:
        yield random.uniform(0, longest)  # noqa: S311  jitter
        longest = min(2 * longest, MAX_PAUSE_SECONDS)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
