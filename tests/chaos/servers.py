"""Embedded PostgreSQL and Valkey of one folder, each behind a proxy, and what can happen to them."""

import os
import shutil
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from redis import Redis

from taskledger.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.chaos.proxy import Proxy
from tests.support import wait_until

FAST = {"fsync": "off", "full_page_writes": "off"}
"""Safe against killed processes: what they wrote is the kernel's."""


class Servers:
    """`direct_*` goes around the proxies; `dsn` and `redis_url` go through them and never change."""

    def __init__(
        self,
        folder: Path,
        *,
        postgres: Mapping[str, str] | None = None,
        valkey: Mapping[str, str] | None = None,
    ) -> None:
        self._postgres = EmbeddedPostgres(folder, settings=postgres)
        self._valkey = EmbeddedValkey(folder, settings=valkey)
        self._saved = folder / "valkey.saved"
        self._saved_postgres = folder / "postgres.saved"
        self.postgres_proxy = Proxy("")
        self.redis_proxy = Proxy("")
        self._stopped: list[int] = []

    def start(self) -> None:
        try:
            self.start_postgres()
            self.start_valkey()
            self.postgres_proxy.start()
            self.redis_proxy.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self.resume_postgres()
        self.resume_valkey()
        self.postgres_proxy.stop()
        self.redis_proxy.stop()
        self._postgres.stop(mode="immediate")
        self._valkey.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def heal(self) -> None:
        """Both servers run and both proxies let everything through."""
        self.resume_postgres()
        self.resume_valkey()
        self.start_postgres()
        self.start_valkey()
        self.postgres_proxy.heal()
        self.redis_proxy.heal()

    @property
    def direct_dsn(self) -> str:
        return self._postgres.dsn

    @property
    def direct_redis_url(self) -> str:
        return self._valkey.url

    @property
    def dsn(self) -> str:
        return self.proxied(self.direct_dsn)

    def proxied(self, dsn: str) -> str:
        """The same database, through the proxy."""
        found = conninfo_to_dict(dsn)
        login = f"{found['user']}:{found['password']}"
        return f"postgresql://{login}@127.0.0.1:{self.postgres_proxy.port}/{found['dbname']}"

    @property
    def redis_url(self) -> str:
        password = parse_qs(urlsplit(self.direct_redis_url).query)["password"][0]
        return f"redis://:{password}@127.0.0.1:{self.redis_proxy.port}/0"

    # PostgreSQL

    def start_postgres(self) -> None:
        self._postgres.start()
        found = conninfo_to_dict(self.direct_dsn)
        self.postgres_proxy.target = f"{found['host']}/.s.PGSQL.{found['port']}"

    def crash_postgres(self) -> None:
        """Immediate stop: no goodbye to the clients, no checkpoint; the next start recovers."""
        self._postgres.stop(mode="immediate")

    def save_postgres(self) -> None:
        """Remember its data of now for roll_back_postgres(). Stops and starts it."""
        self._postgres.stop()
        shutil.rmtree(self._saved_postgres, ignore_errors=True)
        shutil.copytree(self._postgres.home, self._saved_postgres)
        self.start_postgres()

    def roll_back_postgres(self) -> None:
        """It comes back as it was at save_postgres(), as a backup that is restored, or a copy that takes
        over without the latest commits."""
        self.crash_postgres()
        shutil.rmtree(self._postgres.home)
        shutil.copytree(self._saved_postgres, self._postgres.home)
        self.start_postgres()

    def kill_backend(self, name: str = "taskledger") -> int:
        """SIGKILL one client's backend: the postmaster then throws out every client and recovers. The pid.
        `name`: part of the application_name."""
        with psycopg.connect(self.direct_dsn, autocommit=True) as connection:
            row = connection.execute(
                "select pid from pg_stat_activity where backend_type = 'client backend'"
                " and pid <> pg_backend_pid() and strpos(application_name, %s) > 0 limit 1",
                [name],
            ).fetchone()
        if row is None:
            raise LookupError(f"PostgreSQL has no client {name!r}")
        os.kill(row[0], signal.SIGKILL)
        return int(row[0])

    def suspend_postgres(self) -> None:
        """SIGSTOP the postmaster and all its children."""
        postmaster = self._postgres.pid
        if postmaster is None:
            raise RuntimeError("PostgreSQL does not run")
        os.kill(postmaster, signal.SIGSTOP)
        self._stopped.append(postmaster)
        self.suspend_backends(_children(postmaster))

    def suspend_backends(self, pids: Iterable[int]) -> None:
        """SIGSTOP these alone, until resume_postgres(). Their sockets stay open, and the kernel answers."""
        for pid in pids:
            self._stopped.append(pid)
            _signal(pid, signal.SIGSTOP)

    def resume_postgres(self) -> None:
        for pid in reversed(self._stopped):
            _signal(pid, signal.SIGCONT)
        self._stopped = []

    # Valkey

    def start_valkey(self) -> None:
        self._valkey.start()
        self.redis_proxy.target = urlsplit(self.direct_redis_url).path

    def flushall(self) -> None:
        with Redis.from_url(self.direct_redis_url) as redis:
            redis.flushall()

    def kill_valkey(self) -> None:
        """SIGKILL. What it had written to its append-only file is there at the next start; with `everysec`
        that may lack the last second or two."""
        if (pid := self._valkey.pid) is not None:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self._valkey.alive(), "the end of Valkey")

    def empty_valkey(self) -> None:
        """It comes back without its files."""
        self.kill_valkey()
        shutil.rmtree(self._append_only, ignore_errors=True)
        self.start_valkey()

    def save_valkey(self) -> None:
        """Remember its append-only files of now for roll_back_valkey()."""
        shutil.rmtree(self._saved, ignore_errors=True)
        shutil.copytree(self._append_only, self._saved)

    def roll_back_valkey(self) -> None:
        """It comes back as it was at save_valkey(): the writes since are gone, as after a power cut."""
        self.kill_valkey()
        shutil.rmtree(self._append_only)
        shutil.copytree(self._saved, self._append_only)
        self.start_valkey()

    def suspend_valkey(self) -> None:
        if (pid := self._valkey.pid) is None:
            raise RuntimeError("Valkey does not run")
        os.kill(pid, signal.SIGSTOP)

    def resume_valkey(self) -> None:
        if (pid := self._valkey.pid) is not None:
            _signal(pid, signal.SIGCONT)

    @property
    def _append_only(self) -> Path:
        return self._valkey.home / "appendonlydir"


def _children(parent: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if int(stat.rpartition(")")[2].split()[1]) == parent:
            found.append(int(entry.name))
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it has ended meanwhile, so there is nothing to stop
        return
