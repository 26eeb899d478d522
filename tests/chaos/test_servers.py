"""Each fault of the servers, as their clients meet it."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis
from redis import TimeoutError as RedisTimeoutError
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.chaos.servers import FAST, Servers
from tests.support import wait_until


@pytest.fixture(scope="module")
def module_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    always = {"appendfsync": "always"}  # else a write may wait for the sync of an earlier one
    with Servers(tmp_path_factory.mktemp("servers"), postgres=FAST, valkey=always) as servers:
        with psycopg.connect(servers.direct_dsn, autocommit=True) as connection:
            connection.execute("create table t (n int)")
        yield servers


@pytest.fixture
def servers(module_servers: Servers) -> Servers:
    module_servers.heal()
    return module_servers


@pytest.fixture
def redis(servers: Servers) -> Iterator[Redis]:
    servers.flushall()
    with Redis.from_url(servers.redis_url, socket_timeout=0.3, retry=Retry(NoBackoff(), 0)) as client:
        yield client


def insert(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True, connect_timeout=2) as connection:
        connection.execute("insert into t values (1)")
        row = connection.execute("select count(*) from t").fetchone()
        assert row is not None
        return int(row[0])


def test_postgres_immediate_stop_and_start(servers: Servers) -> None:
    dsn, before = servers.dsn, insert(servers.dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        servers.crash_postgres()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    with pytest.raises(psycopg.OperationalError):
        insert(dsn)
    servers.start_postgres()
    assert insert(dsn) == before + 1
    assert dsn == servers.dsn


def test_postgres_backend_killed_throws_everybody_out(servers: Servers) -> None:
    with (
        psycopg.connect(servers.dsn, autocommit=True, application_name="taskledger-victim") as victim,
        psycopg.connect(servers.dsn, autocommit=True) as bystander,
    ):
        pid = victim.info.backend_pid
        assert servers.kill_backend("victim") == pid
        with pytest.raises(psycopg.OperationalError):
            wait_until(lambda: bystander.execute("select 1").fetchone() is None)
    wait_until(lambda: recovered(servers), "recovery")


def recovered(servers: Servers) -> bool:
    try:
        return insert(servers.dsn) > 0
    except psycopg.OperationalError:
        return False


def test_no_backend_to_kill(servers: Servers) -> None:
    with pytest.raises(LookupError, match="nobody"):
        servers.kill_backend("nobody")


def test_postgres_suspended_is_silent(servers: Servers) -> None:
    with psycopg.connect(servers.dsn, autocommit=True) as connection:
        servers.suspend_postgres()
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            psycopg.connect(servers.dsn, connect_timeout=2)
        servers.resume_postgres()
        assert connection.execute("select 1").fetchone() == (1,)


def test_valkey_flushed(servers: Servers, redis: Redis) -> None:
    redis.set("a", 1)
    servers.flushall()
    assert redis.get("a") is None


def test_valkey_killed_keeps_what_it_synced(servers: Servers, redis: Redis) -> None:
    redis.set("a", 1)
    servers.kill_valkey()
    with pytest.raises(RedisConnectionError):
        redis.get("a")
    servers.start_valkey()
    assert redis.get("a") == b"1"


def test_valkey_emptied(servers: Servers) -> None:
    with Redis.from_url(servers.redis_url) as before:
        before.set("a", 1)
        servers.empty_valkey()
    with Redis.from_url(servers.redis_url) as after:
        assert after.get("a") is None


def test_valkey_rolled_back(servers: Servers) -> None:
    with Redis.from_url(servers.redis_url) as before:
        before.set("kept", 1)
        servers.save_valkey()
        before.set("lost", 1)
        servers.roll_back_valkey()
    with Redis.from_url(servers.redis_url) as after:
        assert after.get("kept") == b"1"
        assert after.get("lost") is None


def test_valkey_suspended_is_silent(servers: Servers, redis: Redis) -> None:
    redis.ping()
    servers.suspend_valkey()
    with pytest.raises(RedisTimeoutError):
        redis.ping()
    servers.resume_valkey()
    assert redis.ping()


def test_stopping_resumes_what_was_suspended(tmp_path: Path) -> None:
    with Servers(tmp_path, postgres=FAST) as servers:
        servers.suspend_postgres()
        servers.suspend_valkey()
    for name in ("postgres", "valkey"):
        assert not (tmp_path / f"{name}.run").exists()
