"""One PostgreSQL and one Valkey for a whole run; each phase gets an empty database and an empty Valkey."""

import contextlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self, cast
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql
from redis import Redis

from taskledger.embedded import EmbeddedPostgres, EmbeddedValkey

POSTGRES: Final = {"shared_buffers": "1GB", "max_wal_size": "4GB"}
"""Beside the defaults of the embedded server: fsync and synchronous_commit are on."""
DATABASE: Final = "bench"
_SIZE: Final = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname || '.' || c.relname LIKE %s
"""


@dataclass(frozen=True)
class Servers:
    admin_dsn: str
    dsn: str
    """Of the database that `clear` makes."""
    redis_url: str
    pids: dict[str, int]

    def of(self, database: str) -> Self:
        """The same servers with another database."""
        return replace(self, dsn=_with_database(self.admin_dsn, database))

    def clear(self) -> None:
        """Makes the database anew and empties Valkey. Ends sessions that were left open."""
        name = sql.Identifier(urlsplit(self.dsn).path[1:])
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        self.settle()

    def settle(self) -> None:
        """For a workload that goes on with the database as it is: nothing in Valkey, nothing to write."""
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            connection.execute("CHECKPOINT")  # or one that is due slows whoever comes next
        with Redis.from_url(self.redis_url) as redis:
            redis.flushall()

    def bytes_kept(self, tables: Mapping[str, str]) -> dict[str, int]:
        """In both, and in the tables, indexes included, whose schema.name is LIKE that."""
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
            assert row is not None
            kept = {"PostgreSQL": int(row[0])}
            for name, pattern in tables.items():
                row = connection.execute(_SIZE, (pattern,)).fetchone()
                assert row is not None
                kept[name] = int(row[0])
        with Redis.from_url(self.redis_url) as redis:
            used = redis.info("memory")
        assert isinstance(used, dict)
        return {**kept, "Redis": used["used_memory"]}

    def entries(self) -> int:
        """In all streams of Redis."""
        with Redis.from_url(self.redis_url) as redis:
            keys = cast("Iterator[bytes]", redis.scan_iter(_type="stream"))
            return sum(int(redis.xlen(key)) for key in keys)


def _with_database(dsn: str, database: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


@contextlib.contextmanager
def running(folder: Path) -> Generator[Servers]:
    postgres, valkey = EmbeddedPostgres(folder, settings=POSTGRES), EmbeddedValkey(folder)
    try:
        dsn, redis_url = postgres.start(60), valkey.start(60)
        assert postgres.pid is not None
        assert valkey.pid is not None
        pids = {"PostgreSQL": postgres.pid, "Redis": valkey.pid}
        servers = Servers(dsn, _with_database(dsn, DATABASE), redis_url, pids)
        servers.clear()
        yield servers
    finally:
        valkey.stop()
        postgres.stop()
