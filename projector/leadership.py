"""One folding process per generation: an advisory lock on a connection of its own."""

import time
from types import TracebackType
from typing import Final, Self

import psycopg

from projector.watchdog import WatchedConnection
from taskledger.postgres import SESSION, connect_as

_LOCK_CLASS: Final = 731146
"""First half of the two-part advisory lock; the second is the generation."""
IDLE_SECONDS: Final = 5
PING_SECONDS: Final = 1.0


class Leadership:
    """Lost with its connection. The server ends that connection when nothing is heard of it for five
    seconds, so that a frozen leader is replaced; fenced writes see to the rest."""

    def __init__(self, dsn: str, *, name: str, idle_seconds: int = IDLE_SECONDS) -> None:
        """`idle_seconds` 0: for who cannot ping while it works and whom nobody replaces."""
        options = f"{SESSION} -c idle_session_timeout={idle_seconds}s"
        self.connection = connect_as(WatchedConnection, dsn, name=name, options=options)
        """To be watched by who cannot wait for ever."""
        self._held: set[int] = set()
        self._pinged = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.connection.close()

    def leads(self, generation: int, *, patience: float = 0.0) -> bool:
        """Whether this process is the leader, becoming it if nobody is, or nobody is any longer within
        `patience` seconds. Raises psycopg.OperationalError when the connection, and with it every
        leadership, is lost."""
        if generation in self._held:
            return True
        if not (self._try(generation) or (patience and self._wait(generation, patience))):
            return False
        self._held.add(generation)
        return True

    def _try(self, generation: int) -> bool:
        row = self.connection.execute(
            "select pg_try_advisory_lock(%s, %s)", (_LOCK_CLASS, generation)
        ).fetchone()
        self._pinged = time.monotonic()
        return row is not None and bool(row[0])

    def _wait(self, generation: int, seconds: float) -> bool:
        try:
            with self.connection.transaction():
                self.connection.execute(f"set local lock_timeout = '{seconds:f}s'".encode())
                self.connection.execute("select pg_advisory_lock(%s, %s)", (_LOCK_CLASS, generation))
        except psycopg.errors.LockNotAvailable:
            return False
        return True

    def resign(self, generation: int) -> None:
        if generation in self._held:
            self._held.discard(generation)
            self.connection.execute("select pg_advisory_unlock(%s, %s)", (_LOCK_CLASS, generation))

    def check(self) -> None:
        """Raises as leads() when every leadership is lost."""
        self.connection.execute("select 1")
        self._pinged = time.monotonic()

    def ping(self) -> None:
        """At least once a second. Raises as leads()."""
        if time.monotonic() - self._pinged >= PING_SECONDS:
            self.check()
