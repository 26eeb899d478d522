"""The thread that keeps counts: beside the projector's loop, which it never holds up."""

import random
import threading
import time
from threading import Event
from typing import Final

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from events.codec import EventMapper
from events.errors import LogError, SchemaNotReady, StoreUnavailable
from events.migrate import check_schema
from projector.generations import Generation, live, lock_generations
from projector.keeping import KEPT_EVERY, keep, next_gap, put
from projector.parking import parked
from taskledger.postgres import SESSION, connect_sync
from taskledger.telemetry import get_logger

LOOK_SECONDS: Final = 1.0
REST: Final = 9.0
"""Filling rests this many times as long as it worked: it takes a tenth of a core at the most."""
GAPS_SECONDS: Final = 60.0
"""Where there was no gap, the next look for one: it goes over all points."""
TROUBLE_SECONDS: Final = 5.0
_LOCK: Final = 7311461898377
"""Session advisory lock: of many projectors one keeps."""
_SESSION: Final = f"{SESSION} -c synchronous_commit=off -c enable_seqscan=off -c statement_timeout=60s"

_logger = get_logger(__name__)


class Keeper:
    """start() once; it ends with the process, or soon after stop()."""

    def __init__(self, dsn: str, *, every: int = KEPT_EVERY) -> None:
        self._dsn = dsn
        self._every = every
        self._mapper = EventMapper()
        self._whole = (0, 0.0)
        """The generation that had no gap, and when to look again."""
        self._stop = Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 2.0) -> None:
        self._stop.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with connect_sync(self._dsn, name="keeper", options=_SESSION) as connection:
                    self._follow(connection)
            except (psycopg.Error, SchemaNotReady, StoreUnavailable, LogError) as error:
                # Nobody misses a point but who asks for the past; what is wrong is told by the projector.
                _logger.debug("keeping no counts", reason=type(error).__name__)
                self._stop.wait(TROUBLE_SECONDS * random.uniform(0.5, 1))  # noqa: S311  jitter

    def _follow(self, connection: Connection[TupleRow]) -> None:
        check_schema(connection)
        while not self._stop.is_set():
            row = connection.execute("select pg_try_advisory_lock(%s)", (_LOCK,)).fetchone()
            if row is None or not row[0]:
                self._stop.wait(TROUBLE_SECONDS)
                continue
            while not self._stop.is_set():
                began = time.monotonic()
                worked = self._turn(connection)
                self._stop.wait(REST * (time.monotonic() - began) if worked else LOOK_SECONDS)

    def _turn(self, connection: Connection[TupleRow]) -> bool:
        """Whether a point was made."""
        with connection.transaction():
            lock_generations(connection)
            generation = live(connection)
            if generation is None or not generation.is_ours:
                return False
            if keep(connection, generation, every=self._every):
                return True
            before = parked(connection)
        whole, again_at = self._whole
        if whole == generation.number and time.monotonic() < again_at:
            return False
        # Outside: whoever switches, parks or prunes waits for that lock.
        point = next_gap(connection, generation, self._mapper, every=self._every)
        if point is None:
            self._whole = (generation.number, time.monotonic() + GAPS_SECONDS)
            return False
        with connection.transaction():
            lock_generations(connection)
            # An event that is parked, or no longer, changes what the point should count.
            if _same(live(connection), generation) and parked(connection) == before:
                put(connection, generation, point)
        return True


def _same(one: Generation | None, other: Generation) -> bool:
    return one is not None and one.number == other.number
