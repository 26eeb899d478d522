"""The servers of `up`: our own where no address is given, on a data folder that only one run uses."""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from secrets import token_urlsafe
from typing import Final

from taskledger.addresses import POSTGRES, REDIS, address_file, as_text
from taskledger.embedded import EmbeddedPostgres, EmbeddedValkey
from taskledger.embedded._files import (
    make_data_dir,
    release_lock,
    take_lock,
    told_in_one_line,
    write_private,
)
from taskledger.settings import Settings
from taskledger.telemetry import get_logger

START_SECONDS: Final = 60.0
"""Crash recovery of a large log included."""

_logger = get_logger(__name__)


class Servers:
    """Stops whatever of it was started, whether or not the start went through."""

    def __init__(self, settings: Settings) -> None:
        self.postgres = EmbeddedPostgres(settings.data_dir) if settings.postgres.dsn is None else None
        self.valkey = EmbeddedValkey(settings.data_dir) if settings.redis.url is None else None
        self._busy = threading.Lock()
        self._address_file = address_file(settings.data_dir)

    @property
    def names(self) -> str:
        own = [server.title for server in (self.postgres, self.valkey) if server is not None]
        return " and ".join(own)

    def start(self) -> dict[str, str]:
        """Both at once; returns the settings by which our processes find them.

        Raises EmbeddedServerError. A server that runs is left as it is, so this also revives one
        that died; its address stays the same.
        """
        found: dict[str, str] = {}
        with self._busy, ThreadPoolExecutor(2) as threads:
            postgres = None if self.postgres is None else threads.submit(self.postgres.start, START_SECONDS)
            valkey = None if self.valkey is None else threads.submit(self.valkey.start, START_SECONDS)
            if postgres is not None:
                found[POSTGRES] = postgres.result()
            if valkey is not None:
                found[REDIS] = valkey.result()
        if found:
            with told_in_one_line(self._address_file):
                write_private(self._address_file, as_text(found))
        return found

    def dead(self) -> list[str]:
        """Names of the servers that should run and do not."""
        return [s.title for s in (self.postgres, self.valkey) if s is not None and not s.alive()]

    def stop(self, *, immediate: bool) -> None:
        """Waits for a start that is under way in another thread."""
        if self.names:
            self._address_file.unlink(missing_ok=True)
        stops: list[Callable[[], None]] = []
        if self.postgres is not None:
            postgres = self.postgres
            stops.append(lambda: postgres.stop(mode="immediate" if immediate else "fast"))
        if self.valkey is not None:
            stops.append(self.valkey.stop)
        with self._busy, ThreadPoolExecutor(2) as threads:
            for stopped in [threads.submit(stop) for stop in stops]:
                stopped.result()


@contextmanager
def only_one(data_dir: Path) -> Generator[None]:
    """Raises EmbeddedServerError if another `up` runs on the folder, or if it cannot be used."""
    with told_in_one_line(data_dir):
        make_data_dir(data_dir)
        lock = take_lock(data_dir / "up.lock")
    try:
        yield
    finally:
        release_lock(lock)


def webhook_secret(data_dir: Path) -> Path:
    """The file with the secret that webhooks are signed with; made, readable by us alone, if there is
    none. To delete it is to change what every receiver knows. Raises EmbeddedServerError."""
    path = (data_dir / "webhooks.secret").absolute()
    with told_in_one_line(path):
        if not path.exists():
            write_private(path, token_urlsafe(32))
    return path
