"""One folding process per generation: an advisory lock on a connection of its own."""

import time
from types import TracebackType
from typing import Final, Self

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

    def leads(self, generation: int) -> bool:
        """Whether this process is the leader, becoming it if nobody is. Raises psycopg.OperationalError
        when the connection, and with it every leadership, is lost."""
        if generation in self._held:
            return True
        row = self.connection.execute(
            "select pg_try_advisory_lock(%s, %s)", (_LOCK_CLASS, generation)
        ).fetchone()
        self._pinged = time.monotonic()
        if row is None or not row[0]:
            return False
        self._held.add(generation)
        return True

    def resign(self, generation: int) -> None:
        if generation in self._held:
            self._held.discard(generation)
            self.connection.execute("select pg_advisory_unlock(%s, %s)", (_LOCK_CLASS, generation))

    def ping(self) -> None:
        """At least once a second. Raises as leads()."""
        if time.monotonic() - self._pinged >= PING_SECONDS:
            self.connection.execute("select 1")
            self._pinged = time.monotonic()
