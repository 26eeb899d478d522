"""Real servers once a session, a fresh migrated database and an empty Valkey for each test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from command_side.clock import DatabaseClock
from command_side.service import CommandService
from events.codec import EventMapper
from events.group_commit import GroupCommit
from events.migrate import migrate
from events.postgres_log import PostgresLog
from taskledger.embedded import EmbeddedPostgres, EmbeddedValkey
from taskledger.postgres import Pool, connect, make_pool
from taskledger.redis import make_redis
from tests.support import Service

hypothesis.settings.register_profile("busy machine", deadline=None)  # how long a try takes proves nothing
hypothesis.settings.load_profile("busy machine")

# Safe against a killed process, not against a power cut; each test's database goes anyway.
FAST = {"fsync": "off", "full_page_writes": "off", "max_connections": "300"}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def postgres_server(data_dir: Path) -> Iterator[str]:
    """DSN of the session's own PostgreSQL."""
    server = EmbeddedPostgres(data_dir, settings=FAST)
    try:
        yield server.start()
    finally:
        server.stop(mode="immediate")


@pytest.fixture(scope="session")
def template(postgres_server: str) -> str:
    """Name of a migrated database that tests copy."""
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("create database migrated")
    migrate(make_conninfo(postgres_server, dbname="migrated"))
    return "migrated"


def _database(server: str, template: str) -> Iterator[str]:
    name = f"t_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {} strategy file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        dsn = make_conninfo(server, dbname=name)
        # A copy has its template's log tag; logs of different tests are different logs.
        with psycopg.connect(dsn, autocommit=True) as copy:
            exists = copy.execute("select to_regclass('taskledger.log_identity')").fetchone()
            if exists is not None and exists[0] is not None:
                copy.execute(
                    "update taskledger.log_identity set tag = substr(md5(gen_random_uuid()::text), 1, 8)"
                )
        yield dsn
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def dsn(postgres_server: str, template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    yield from _database(postgres_server, template)


@pytest.fixture
def empty_dsn(postgres_server: str) -> Iterator[str]:
    """A database that was never migrated."""
    yield from _database(postgres_server, "template0")


@pytest.fixture(scope="session")
def valkey_server(data_dir: Path) -> Iterator[str]:
    server = EmbeddedValkey(data_dir)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def redis_url(valkey_server: str) -> str:
    """An empty Valkey."""
    with SyncRedis.from_url(valkey_server) as client:
        client.flushall()
    return valkey_server


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = make_redis(redis_url, name="test")
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[Pool]:
    async with make_pool(dsn, name="test", size=4) as pool:
        yield pool


@pytest.fixture
async def service(dsn: str, pool: Pool) -> AsyncIterator[Service]:
    log = PostgresLog(pool, lambda: connect(dsn, name="test-append"))
    commits = GroupCommit(log)
    clock = DatabaseClock()
    async with pool.connection() as connection:
        row = await (await connection.execute("select clock_timestamp()")).fetchone()
        assert row is not None
        clock.observe(row[0])
    mapper = EventMapper()
    yield Service(dsn, pool, log, commits, clock, CommandService(log, commits, mapper, clock), mapper)
    await commits.drain()
    await log.close()


@pytest.fixture
def log(service: Service) -> PostgresLog:
    return service.log
