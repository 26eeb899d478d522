"""Each fault of the proxy, as psycopg and redis-py meet it."""

import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from redis import ConnectionError as RedisConnectionError
from redis import Redis
from redis import TimeoutError as RedisTimeoutError
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.chaos.proxy import Proxy
from tests.support import wait_until


@pytest.fixture
def proxy(empty_dsn: str) -> Iterator[Proxy]:
    found = conninfo_to_dict(empty_dsn)
    proxy = Proxy(f"{found['host']}/.s.PGSQL.{found['port']}")
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture
def via(empty_dsn: str, proxy: Proxy) -> dict[str, Any]:
    return {**conninfo_to_dict(empty_dsn), "host": "127.0.0.1", "port": proxy.port}


@pytest.fixture
def connection(via: dict[str, Any]) -> Iterator[Connection[TupleRow]]:
    with psycopg.connect(**via, autocommit=True, application_name="customer") as connection:
        connection.execute("create table t (n int)")
        yield connection


@pytest.fixture
def redis_proxy(redis_url: str) -> Iterator[Proxy]:
    proxy = Proxy(urlsplit(redis_url).path)
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture
def redis(redis_url: str, redis_proxy: Proxy) -> Iterator[Redis]:
    password = parse_qs(urlsplit(redis_url).query)["password"][0]
    with Redis(
        port=redis_proxy.port, password=password, socket_timeout=0.3, retry=Retry(NoBackoff(), 0)
    ) as client:
        client.ping()
        yield client


def rows(dsn: str) -> list[int]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [n for (n,) in connection.execute("select n from t order by n").fetchall()]


def test_passes_everything_on(connection: Connection[TupleRow], proxy: Proxy) -> None:
    large = "x" * 3_000_000
    row = connection.execute("select %s::text", [large]).fetchone()
    assert row == (large,)
    assert proxy.connections == 1


def test_delay_holds_back_both_directions(connection: Connection[TupleRow], proxy: Proxy) -> None:
    proxy.delay(1)
    began = time.monotonic()
    connection.execute("select 1")
    assert time.monotonic() - began >= 2
    proxy.heal()
    began = time.monotonic()
    connection.execute("select 1")
    assert time.monotonic() - began < 1


def test_slices_arrive_whole(connection: Connection[TupleRow], proxy: Proxy) -> None:
    proxy.slice()
    assert connection.execute("select %s::text", ["abc" * 1000]).fetchone() == ("abc" * 1000,)


def test_slices_are_single_bytes(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy.target = server.getsockname()
        proxy.slice()
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"abcdef")
                wait_until(lambda: len(accepted.recv(100, socket.MSG_PEEK)) == 6)


def test_in_a_black_hole_a_request_gets_no_answer_and_no_end(redis: Redis, redis_proxy: Proxy) -> None:
    redis_proxy.black_hole()
    with pytest.raises(RedisTimeoutError):
        redis.set("a", 1)
    with socket.create_connection(("127.0.0.1", redis_proxy.port)) as new:
        new.settimeout(0.1)
        new.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            new.recv(1)
    redis_proxy.heal()
    assert redis.get("a") is None


def test_a_one_way_black_hole_loses_the_answer_but_not_the_request(
    redis: Redis, redis_proxy: Proxy
) -> None:
    redis_proxy.black_hole(to_server=False)
    with pytest.raises(RedisTimeoutError):
        redis.set("a", 1)
    redis_proxy.heal()
    assert redis.get("a") == b"1"


def test_in_a_black_hole_the_server_does_not_learn_that_the_client_left(
    via: dict[str, Any], empty_dsn: str, proxy: Proxy
) -> None:
    def sessions(watcher: Connection[TupleRow]) -> int:
        row = watcher.execute(
            "select count(*) from pg_stat_activity where application_name = 'leaver'"
            " and datname = current_database()"
        ).fetchone()
        assert row is not None
        return int(row[0])

    with psycopg.connect(empty_dsn, autocommit=True) as watcher:
        leaver = psycopg.connect(**via, application_name="leaver")
        proxy.black_hole()
        leaver.close()
        assert sessions(watcher) == 1
        proxy.heal()
        wait_until(lambda: sessions(watcher) == 0)


def test_a_connection_that_lost_bytes_is_reset_when_healed(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy.target = server.getsockname()
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            accepted, _ = server.accept()
            with accepted:
                proxy.black_hole(to_server=False)
                accepted.sendall(b"lost")
                client.sendall(b"not lost")
                assert accepted.recv(100) == b"not lost"
                proxy.heal()
                with pytest.raises(ConnectionResetError):
                    client.recv(1)


def test_a_black_hole_for_some(connection: Connection[TupleRow], via: dict[str, Any], proxy: Proxy) -> None:
    proxy.black_hole(only=b"other")
    assert connection.execute("select 1").fetchone() == (1,)
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        psycopg.connect(**via, application_name="other", connect_timeout=2)


def test_reset_is_rst_for_old_and_new_connections(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy.target = server.getsockname()
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"a")
                assert accepted.recv(1) == b"a"
                proxy.reset()
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
                with pytest.raises(ConnectionResetError):
                    accepted.recv(1)
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", proxy.port)) as new,
        ):
            new.recv(1)


def test_reset_ends_with_heal(redis: Redis, redis_proxy: Proxy) -> None:
    redis_proxy.reset()
    with pytest.raises(RedisConnectionError):
        redis.ping()
    redis_proxy.heal()
    assert redis.ping()


def test_cut_after_a_count_of_bytes(via: dict[str, Any], proxy: Proxy) -> None:
    proxy.cut_after(20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy.target = server.getsockname()
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(b"x" * 15)
                accepted.sendall(b"x" * 15)
                assert len(b"".join(iter(lambda: client.recv(100), b""))) == 20


def test_cut_after_breaks_a_long_answer(connection: Connection[TupleRow], proxy: Proxy) -> None:
    proxy.cut_after(10_000)
    assert connection.execute("select 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("select repeat('x', 100000)")


def test_swallows_the_reply_to_a_commit(
    connection: Connection[TupleRow], empty_dsn: str, proxy: Proxy
) -> None:
    proxy.swallow_reply(when=b"COMMIT")
    with pytest.raises(psycopg.OperationalError), connection.transaction():
        connection.execute("insert into t values (1)")
    assert (rows(empty_dsn), proxy.swallowed) == ([1], 1)


def test_swallows_by_the_name_of_the_connection_and_once(
    connection: Connection[TupleRow], via: dict[str, Any], empty_dsn: str, proxy: Proxy
) -> None:
    """A statement that was prepared has no text on the wire, and autocommit sends no COMMIT."""
    for n in range(2):
        connection.execute("insert into t values (%s)", [n], prepare=True)
    proxy.swallow_reply(when=b"customer")
    with psycopg.connect(**via, autocommit=True, application_name="other") as other:
        other.execute("insert into t values (2)")
    with pytest.raises(psycopg.OperationalError):
        connection.execute("insert into t values (%s)", [3], prepare=True)
    with psycopg.connect(**via, autocommit=True, application_name="customer") as again:
        again.execute("insert into t values (4)")
    assert (rows(empty_dsn), proxy.swallowed) == ([0, 1, 2, 3, 4], 1)


def test_swallows_the_reply_to_the_first_request(via: dict[str, Any], proxy: Proxy) -> None:
    """Saying hello is not a request yet."""
    proxy.swallow_reply(when=b"customer")
    with (
        psycopg.connect(**via, autocommit=True, application_name="customer") as connection,
        pytest.raises(psycopg.OperationalError),
    ):
        connection.execute("select 1")
    assert proxy.swallowed == 1


def test_waits_for_the_end_of_a_long_reply(
    connection: Connection[TupleRow], empty_dsn: str, proxy: Proxy
) -> None:
    """The server sends the first rows before it has committed."""
    proxy.swallow_reply(when=b"customer")
    with pytest.raises(psycopg.OperationalError):
        connection.execute("insert into t select n from generate_series(1, 20000) n returning n")
    assert len(rows(empty_dsn)) == 20_000


def test_swallows_the_reply_of_redis(redis: Redis, redis_proxy: Proxy) -> None:
    redis_proxy.swallow_reply(when=b"XADD")
    redis.ping()
    with pytest.raises(RedisConnectionError):
        redis.xadd("s", {"a": "1"})
    assert (redis.xlen("s"), redis_proxy.swallowed) == (1, 1)


def test_refuses_while_stopped_and_keeps_its_port(redis: Redis, redis_proxy: Proxy) -> None:
    redis_proxy.stop()
    with pytest.raises(RedisConnectionError):
        redis.ping()
    redis_proxy.start()
    assert redis.ping()


def test_a_server_that_is_gone_is_a_refusal(proxy: Proxy, via: dict[str, Any]) -> None:
    proxy.target = "/nowhere"
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(**via, connect_timeout=2)
