"""`taskledger sealer`: keeps the signed Merkle tree over the log, a second behind it and beside all else.

Nothing waits for it, so it does not listen, which would wake it for each append: once a second it seals
what has gathered. One leads: the advisory lock is the session's that reads and writes, so that a leader
which is frozen or cut off loses both at once; the checkpoint's compare-and-set fences it besides.
"""

import random
import signal
import time
from threading import Event
from types import FrameType
from typing import Final

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from events.errors import CheckpointConflict, LogRewound, SchemaNotReady
from events.heads import Signer
from events.migrate import check_schema
from events.tracking import check_log
from events.witness import LOOK, Witness
from projector.seal import TreeBuilder
from projector.tree import CHECKPOINT
from projector.watchdog import ANSWER_SECONDS, Watchdog, WatchedConnection
from taskledger import metrics
from taskledger.health import Health, Heartbeat, health_server
from taskledger.lifecycle import spare_collector
from taskledger.postgres import SESSION, connect_as
from taskledger.settings import Settings
from taskledger.signing_key import key_file, load_signer
from taskledger.telemetry import get_logger

SEAL_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 5
"""After which the server ends a session that says nothing; ours asks once a second."""
SILENT_SECONDS: Final = 30.0
MAX_PAUSE_SECONDS: Final = 2.0

_LOCK: Final = 7311461898376
_SESSION: Final = f"{SESSION} -c synchronous_commit=off -c idle_session_timeout={IDLE_SECONDS}s"
"""A crash of the server may take the last tiles and their head together: the same events, which are there,
give the same ones again."""
_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
_logger = get_logger(__name__)


class Sealer:
    """Made by the composition root; run() returns only when told to stop."""

    def __init__(
        self,
        dsn: str,
        signer: Signer | None = None,
        *,
        seal_seconds: float = SEAL_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._dsn = dsn
        self._signer = signer
        self._seal_seconds = seal_seconds
        self._answer_seconds = answer_seconds
        self._witness = Witness()
        self._said: str | None = None
        self.waiting_for: str | None = "PostgreSQL"
        """In one line, why nothing is sealed. From any thread."""
        self.leads = False
        self.size = 0
        self.heartbeat = Heartbeat(SILENT_SECONDS)

    def run(self, stop: Event) -> None:
        """Until `stop` is set; the step under way is finished first."""
        longest = 0.1
        while not stop.is_set():
            try:
                self._follow(stop)
            except _LOST as error:
                self._wait_for(f"PostgreSQL: {' '.join(str(error).split())}")
            except (SchemaNotReady, LogRewound) as error:
                self._wait_for(str(error))
            except CheckpointConflict:
                _logger.info("starting over", reason="another sealer was faster")
            self.leads = False
            self.heartbeat.tick()
            stop.wait(random.uniform(0, longest))  # noqa: S311  jitter
            longest = min(2 * longest, MAX_PAUSE_SECONDS)

    def _follow(self, stop: Event) -> None:
        """One session: from connecting to the first error or the stop."""
        with (
            connect_as(WatchedConnection, self._dsn, name="sealer", options=_SESSION) as connection,
            Watchdog(connection, seconds=self._answer_seconds),
        ):
            check_schema(connection)
            if not self._await_lead(connection, stop):
                return
            check_log(connection, CHECKPOINT)
            builder = TreeBuilder(connection, self._signer)
            self.leads = True
            while not stop.is_set():
                began = time.monotonic()
                tag, head = self._look(connection)
                self._measure(builder.size, head)
                sealed = builder.step(tag, head)
                if builder.at is not None:
                    self._witness.saw(builder.size, builder.at)
                self._measure(builder.size, head)
                self._wait_for(None)
                self.heartbeat.tick()
                # One that is far behind rests as long as it works, and leaves that to the others.
                behind = sealed and builder.size < head
                spent = time.monotonic() - began
                stop.wait(min(spent, SEAL_SECONDS) if behind else max(0.0, self._seal_seconds - spent))

    def _await_lead(self, connection: Connection[TupleRow], stop: Event) -> bool:
        while not stop.is_set():
            row = connection.execute("select pg_try_advisory_lock(%s)", (_LOCK,)).fetchone()
            if row is not None and row[0]:
                return True
            if self._said != _STANDING_BY:
                _logger.info("standing by", reason=_STANDING_BY)
            self._said, self.waiting_for = _STANDING_BY, None
            self.heartbeat.tick()
            stop.wait(self._seal_seconds * random.uniform(0.5, 1.0))  # noqa: S311  jitter
        return False

    def _look(self, connection: Connection[TupleRow]) -> tuple[str, int]:
        """The log's tag and head. Raises LogRewound where it is no longer the one that we have sealed."""
        mark = self._witness.mark()
        row = connection.execute(LOOK.encode(), mark.parameters).fetchone()
        if row is None:
            raise SchemaNotReady("the log has no tag: run `taskledger migrate`")
        return self._witness.check(row, mark), int(row[1])

    def _measure(self, size: int, head: int) -> None:
        self.size = size
        metrics.CHECKPOINT.labels(CHECKPOINT).set(size)
        metrics.LAG.labels(CHECKPOINT).set(max(0, head - size))

    def _wait_for(self, reason: str | None) -> None:
        before, self.waiting_for = self._said, reason
        self._said = reason or _SEALING
        if before == self._said:
            return
        if reason is None:
            _logger.info("sealing the log", size=self.size, signed=self._signer is not None)
        else:
            _logger.warning("waiting", waiting_for=reason)


_STANDING_BY: Final = "another sealer leads"
_SEALING: Final = "sealing"


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT. Raises ConfigurationError when no database is configured, the signing key
    cannot be read, or the health port cannot be had."""
    stop = Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    path = key_file(settings)
    if path is None:
        _logger.warning("heads are not signed", way_out="TASKLEDGER__PROOF__SIGNING_KEY_FILE")
    sealer = Sealer(settings.require_postgres(), None if path is None else load_signer(path))
    spare_collector()

    def health() -> Health:
        missing = () if sealer.waiting_for is None else (sealer.waiting_for,)
        return Health(sealer.heartbeat.alive(), missing)

    with health_server(settings.health, health):
        sealer.run(stop)
