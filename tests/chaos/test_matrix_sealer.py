"""Kills and freezes of the sealer: its tree is the one over the log, whatever happens to who builds it."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from events.leaf import leaf_of
from projector.verify import inspect
from tests.chaos.cluster import Cluster
from tests.chaos.test_matrix_projector import DEAF, load
from tests.integration.projection import project
from tests.integration.sealing import newest
from tests.support import Service, wait_until
from tests.unit.test_merkle import naive

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

KILLS = 10


@pytest.fixture
def sealers(dsn: str, tmp_path: Path) -> Iterator[Cluster]:
    """Two of them, as processes of their own."""
    with Cluster(tmp_path, dsn=dsn, redis_url=DEAF, copies={"sealer": 2}) as cluster:
        yield cluster


def sealed(dsn: str) -> int:
    try:
        return newest(dsn).head.size
    except AssertionError:  # nothing yet
        return 0


async def goes_on(dsn: str, beyond: int) -> None:
    await asyncio.to_thread(wait_until, lambda: sealed(dsn) > beyond, "it goes on", within=30)


async def is_the_tree_over_the_log(service: Service) -> None:
    head = await service.log.head()
    await asyncio.to_thread(wait_until, lambda: sealed(service.dsn) == head, "all is sealed", within=30)
    events = await service.log.read_after(0, limit=1_000_000)
    assert newest(service.dsn).head.root == naive([leaf_of(event) for event in events])
    project(service.dsn)
    assert inspect(service.dsn).differences == []


async def test_sealer_killed_at_random_seals_each_event_once(service: Service, sealers: Cluster) -> None:
    """SIGKILL at any moment, again and again, of whichever leads -> tiles, head and checkpoint go together,
    another one takes over, and the tree is the one over the log."""
    choice = random.Random(20)
    async with load(service):
        for _ in range(KILLS):
            await asyncio.sleep(choice.uniform(0, 1.2))
            before = sealed(service.dsn)
            for name in sealers.names:
                await asyncio.to_thread(sealers.kill, name)
            await goes_on(service.dsn, before)
    await is_the_tree_over_the_log(service)


async def test_sealer_frozen_is_replaced_and_adds_nothing(service: Service, sealers: Cluster) -> None:
    """SIGSTOP of whichever leads, SIGCONT -> the server ends its session, the other leads; when it wakes up
    it stands by, and the tree is the one over the log."""
    async with load(service):
        await goes_on(service.dsn, 0)
        for name in sealers.names:
            sealers.suspend(name)
            await goes_on(service.dsn, sealed(service.dsn))
            sealers.resume(name)
            await asyncio.to_thread(sealers.await_ready, name)
    await is_the_tree_over_the_log(service)
