"""Fixtures of the fault matrix: servers of a test's own behind proxies, and what runs on them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from taskledger.redis import make_redis
from tests.chaos.apis import Launch
from tests.chaos.cluster import Cluster
from tests.chaos.inprocess import System
from tests.chaos.servers import FAST, Servers
from tests.chaos.store import Store, fresh, prepare
from tests.support import Service


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A PostgreSQL of the module's own behind its proxy, without a Valkey."""
    servers = Servers(tmp_path_factory.mktemp("postgres"), postgres=FAST)
    try:
        servers.start_postgres()
        servers.postgres_proxy.start()
        prepare(servers)
        yield servers
    finally:
        servers.stop()


@pytest.fixture
def store(postgres: Servers) -> Iterator[Store]:
    with fresh(postgres) as store:
        yield store


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Servers]:
    """A Valkey of the test's own behind its proxy; PostgreSQL is the session's."""
    servers = Servers(tmp_path)
    try:
        servers.start_valkey()
        servers.redis_proxy.start()
        yield servers
    finally:
        servers.stop()


@pytest.fixture
async def broker(valkey: Servers) -> AsyncIterator[Redis]:
    """That Valkey, around the proxy."""
    client = make_redis(valkey.direct_redis_url, name="test")
    yield client
    await client.aclose()


@pytest.fixture
async def system(service: Service, valkey: Servers) -> AsyncIterator[System]:
    """A leading dispatcher and a worker on that Valkey."""
    system = System(service, valkey.redis_url)
    try:
        await system.dispatcher()
        await system.worker(concurrency=8)
        yield system
    finally:
        await asyncio.to_thread(_healed, valkey)
        await system.stop()


def _healed(valkey: Servers) -> None:
    valkey.resume_valkey()
    valkey.start_valkey()
    valkey.redis_proxy.heal()


@pytest.fixture
def launch(tmp_path: Path, service: Service, redis_url: str) -> Iterator[Launch]:
    """Starts copies of the command API on the test's database; settings by name."""
    started: list[Cluster] = []

    def launch(copies: int = 1, **env: object) -> Cluster:
        settings = {f"TASKLEDGER__{name}": str(value) for name, value in env.items()}
        cluster = Cluster(
            tmp_path, dsn=service.dsn, redis_url=redis_url, copies={"command-api": copies}, env=settings
        )
        started.append(cluster)
        cluster.start()
        return cluster

    try:
        yield launch
    finally:
        for cluster in started:
            cluster.stop()
