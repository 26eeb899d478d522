"""Ends a session whose server has fallen silent. One that is frozen, or that the network swallows, would be
waited for without end: no timeout of its own reaches us, and keepalives are the kernel's."""

import os
import socket
import time
from contextlib import suppress
from threading import Event, Thread
from typing import Any, Final, Self

from psycopg import Connection
from psycopg.abc import PQGen
from psycopg.rows import TupleRow

ANSWER_SECONDS: Final = 12.0
"""More than the server itself gives a statement (`statement_timeout`, 10 s): it is never cut off while it
answers."""


class WatchedConnection(Connection[TupleRow]):
    """Knows since when it has been waiting for the server."""

    waiting_since: float | None = None
    """By the monotonic clock."""

    def wait(self, gen: PQGen[Any], *args: Any, **options: Any) -> Any:
        """All that psycopg waits for on an open connection goes through here."""
        self.waiting_since = time.monotonic()
        try:
            return super().wait(gen, *args, **options)
        finally:
            self.waiting_since = None


class Watchdog:
    """Within its block, a statement that has had no answer for `seconds` (and a tenth more at the most)
    raises psycopg.OperationalError, and its connection is lost. One thread for the whole session: a timer
    for each statement would cost more than most of them."""

    def __init__(self, *connections: WatchedConnection, seconds: float = ANSWER_SECONDS) -> None:
        self._seconds = seconds
        # Of its own: libpq may close its descriptor at any time, and the number be used anew.
        self._twins = [socket.socket(fileno=os.dup(c.pgconn.socket)) for c in connections]
        self._connections = connections
        self._stop = Event()
        self._thread = Thread(target=self._run, name="database-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for twin in self._twins:
            twin.close()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds / 10):
            for connection, twin in zip(self._connections, self._twins, strict=True):
                since = connection.waiting_since
                if since is not None and time.monotonic() - since > self._seconds:
                    with suppress(OSError):  # the connection is gone already
                        twin.shutdown(socket.SHUT_RDWR)
