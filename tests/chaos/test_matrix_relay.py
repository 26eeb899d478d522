"""The relay in the fault matrix: killed at each border, doubled, frozen, and back after a long absence."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from command_side.dispatcher.outstanding import Row
from command_side.dispatcher.store import OutstandingStore
from events.errors import CheckpointConflict
from events.position import PositionToken
from events.task_state import TaskState
from taskledger.postgres import Pool
from taskledger.redis import position_key, stream_key
from tests.chaos.cluster import Cluster
from tests.chaos.inprocess import ONCE, System, nothing_left
from tests.integration.dispatching import Bench, Entries, entry
from tests.support import Service, eventually

LEASE = 1.0
STREAM = stream_key("default", "mark", "normal")
ARRIVALS = 50
"""Tasks a second that a service of this size may get."""


@pytest.fixture
def tasks(service: Service, redis_url: str) -> System:
    """What the tests ask of the log."""
    return System(service, redis_url)


async def marks(system: System, count: int) -> list[TaskState]:
    return await system.create("mark", {"mark": "m"}, count)


async def entries(redis: Redis, stream: str = STREAM) -> Entries:
    found: Any = await redis.xrange(stream)
    return [(str(id_), str(fields["task"])) for id_, fields in found]


async def published(redis: Redis, tasks: Sequence[TaskState], *, within: float = 15.0) -> None:
    """Exactly these, in order, under their own positions."""

    async def complete() -> bool:
        return await redis.xlen(STREAM) >= len(tasks)

    await eventually(complete, f"{len(tasks)} entries", within=within)
    assert await entries(redis) == [entry(task) for task in tasks]


@pytest.mark.parametrize("failpoint", ["relay-before-xadd", "relay-after-xadd", "relay-after-commit"])
async def test_relay_killed_at_any_border_leaves_neither_gap_nor_double(
    tmp_path: Path, tasks: System, redis: Redis, failpoint: str
) -> None:
    """SIGKILL before XADD, between XADD and the checkpoint, after it -> the next one reads the position in
    Redis and goes on: every entry is there once, under its own id."""
    service = tasks.service
    with Cluster(
        tmp_path,
        dsn=service.dsn,
        redis_url=tasks.redis_url,
        copies={"dispatcher": 1},
        lease_seconds=LEASE,
        env={"TASKLEDGER__LOG_LEVEL": "debug"},
    ) as cluster:
        created = await marks(tasks, 5)
        await published(redis, created)
        for _ in range(3):
            cluster.failpoints.arm(failpoint)
            created += await marks(tasks, 20)

            async def fired() -> bool:
                return cluster.failpoints.fired(failpoint)

            await eventually(fired, "the failpoint")
            created += await marks(tasks, 20)
            await published(redis, created)
        assert cluster.exit_codes["dispatcher-0"] == [-9] * 3
    topics = {(await service.topics(task.id))[-1] for task in created}
    assert topics == {"TaskCreated"}, "nothing was queued a second time"


class Held(OutstandingStore):
    """Stops the fold between reading the log and publishing, until it is let go."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def rows(self, ids: Sequence[UUID], checkpoint: int) -> dict[UUID, Row]:
        self.reached.set()
        await self.go_on.wait()
        return await super().rows(ids, checkpoint)


async def test_relay_that_believes_to_lead_is_refused_by_redis_and_by_the_checkpoint(
    service: Service, redis: Redis
) -> None:
    """Two relays, the older one waking up with a batch in its hands -> its script is refused, so that the
    position is not set back; its commit is refused, and it leads no more."""
    bench = Bench(service, redis)
    known = await service.create()
    await bench.started()
    held = Held(service.pool)
    held.go_on.set()
    old = await bench.caught_up(await bench.relay(held))
    held.go_on.clear()
    first = [await service.create() for _ in range(3)]
    waking = asyncio.create_task(old.turn())
    await held.reached.wait()
    new = await bench.caught_up(await bench.relay())
    second = [await service.create() for _ in range(3)]
    await bench.caught_up(new)
    before = (await bench.position(), await bench.checkpoint(), await bench.entries())
    held.go_on.set()

    with pytest.raises(CheckpointConflict):
        await waking
    assert (await bench.position(), await bench.checkpoint(), await bench.entries()) == before
    assert before[2] == [entry(task) for task in [known, *first, *second]]
    assert bench.status.refused == 1


@pytest.fixture
async def positions(redis: Redis) -> AsyncIterator[list[int]]:
    """What the queue's position was, looked at again and again."""
    seen: list[int] = []

    async def look() -> None:
        while True:
            stored: Any = await redis.get(position_key("default"))
            if stored is not None:
                seen.append(PositionToken.parse(stored).position)
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    yield seen
    looking.cancel()


@pytest.mark.faults  # a frozen session is ended after five seconds
async def test_relay_frozen_with_a_batch_in_its_hands_is_replaced_and_doubles_nothing(
    tmp_path: Path, tasks: System, redis: Redis, positions: list[int]
) -> None:
    """SIGSTOP of the leader after XADD, for longer than its session lives; SIGCONT when another leads ->
    everything runs once, the position never falls, and the old leader stands by."""
    copies = {"dispatcher": 2, "worker": 1}
    with Cluster(
        tmp_path, dsn=tasks.dsn, redis_url=tasks.redis_url, copies=copies, lease_seconds=LEASE
    ) as cluster:
        cluster.failpoints.arm("relay-after-xadd", "stop")
        created = await marks(tasks, 20)
        began = time.monotonic()
        await eventually(lambda: fired(cluster), "the frozen leader")
        created += await marks(tasks, 20)
        await tasks.all(created, "completed", within=12)
        assert time.monotonic() - began > 4, "the other one cannot lead sooner"
        for name in ("dispatcher-0", "dispatcher-1"):
            cluster.resume(name)
        for _ in range(10):
            created += await marks(tasks, 5)
            await tasks.all(created, "completed")
        await tasks.ran_once(created)
        await eventually(lambda: nothing_left(redis, "default"), "empty streams")
        for name in ("dispatcher-0", "dispatcher-1"):
            await asyncio.to_thread(cluster.await_ready, name)
        assert not any(cluster.restarts.values())
    assert positions == sorted(positions)


async def fired(cluster: Cluster) -> bool:
    return cluster.failpoints.fired("relay-after-xadd")


async def test_relay_back_after_a_long_absence_drains_its_backlog_and_the_sweeper_doubles_nothing(
    service: Service, redis: Redis, redis_url: str
) -> None:
    """No dispatcher for many leases while tasks come in -> published at more than five times the rate at
    which they come, each once; the sweeper, to whom all of them have waited too long, adds none."""
    system = System(service, redis_url)
    backlog = [task for _ in range(4) for task in await system.echoes(300)]
    status = await system.dispatcher(ready=False, hole_patience=0.0, holes=0.5)
    try:

        async def leads() -> bool:
            return status.leader

        await eventually(leads, "a leader")
        began = time.monotonic()

        async def all_published() -> bool:
            return status.published == len(backlog)

        await eventually(all_published, "the backlog", within=20)
        rate = len(backlog) / (time.monotonic() - began)
        await system.worker(concurrency=64)
        await system.all(backlog[-100:], "completed", within=40)
    finally:
        await system.stop()
    assert rate > 5 * ARRIVALS
    assert (status.replaced, status.refused) == (0, 0)
    for task in backlog[-100:]:
        assert await service.topics(task.id) == ONCE
    assert await queued_again(service) == 0


async def queued_again(service: Service) -> int:
    async with service.pool.connection() as connection:
        cursor = await connection.execute(
            "select count(*) from taskledger.task_events where topic = 'TaskQueued'"
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])
