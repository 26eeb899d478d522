"""One PostgreSQL and one Valkey for a whole run; each phase gets an empty database and an empty Valkey."""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql
from redis import Redis

from taskledger.embedded import EmbeddedPostgres, EmbeddedValkey

POSTGRES: Final = {"shared_buffers": "1GB", "max_wal_size": "4GB"}
"""Beside the defaults of the embedded server: fsync and synchronous_commit are on."""
DATABASE: Final = "bench"


@dataclass(frozen=True)
class Servers:
    admin_dsn: str
    dsn: str
    """Of the database that `clear` makes."""
    redis_url: str
    pids: dict[str, int]

    def clear(self) -> None:
        """Ends sessions that were left open."""
        name = sql.Identifier(DATABASE)
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
            connection.execute("CHECKPOINT")  # or one that is due slows whoever comes next
        with Redis.from_url(self.redis_url) as redis:
            redis.flushall()

    def bytes_kept(self) -> dict[str, int]:
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        with Redis.from_url(self.redis_url) as redis:
            used = redis.info("memory")
        assert row is not None
        assert isinstance(used, dict)
        return {"postgresql": row[0], "redis": used["used_memory"]}


@contextlib.contextmanager
def running(folder: Path) -> Generator[Servers]:
    postgres, valkey = EmbeddedPostgres(folder, settings=POSTGRES), EmbeddedValkey(folder)
    try:
        dsn, redis_url = postgres.start(60), valkey.start(60)
        assert postgres.pid is not None
        assert valkey.pid is not None
        pids = {"PostgreSQL": postgres.pid, "Redis": valkey.pid}
        own = urlunsplit(urlsplit(dsn)._replace(path=f"/{DATABASE}"))
        servers = Servers(dsn, own, redis_url, pids)
        servers.clear()
        yield servers
    finally:
        valkey.stop()
        postgres.stop()
