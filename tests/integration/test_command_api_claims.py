"""Claims: stream entries become started tasks with a lease, each at most once, and none is lost."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis.asyncio import Redis

from command_side.api.app import create_app
from command_side.commands import StartTask
from events.ids import new_task_id
from taskledger.redis import GROUP, LANES, stream_key
from tests.integration.command_api import (
    GREET,
    NO_REDIS,
    Tasks,
    in_process,
    on_port,
    problem,
    settings_for,
)
from tests.support import Service, eventually, now

CLAIM = "/queues/front/claim"
ME = {"worker": "w-1"}


@pytest.fixture
async def tasks(dsn: str, redis_url: str, service: Service, redis: Redis) -> AsyncIterator[Tasks]:
    async with in_process(settings_for(dsn, redis_url, lease_seconds=0.5)) as client:
        yield Tasks(client, service, redis)


async def published(tasks: Tasks, count: int = 1, **fields: Any) -> list[str]:
    ids = [await tasks.create(GREET | fields) for _ in range(count)]
    for task_id in ids:
        await tasks.publish(task_id)
    return ids


async def claim(tasks: Tasks, **fields: Any) -> list[dict[str, Any]]:
    answer = await tasks.post(CLAIM, ME | fields)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["tasks"]
    return found


def ids_of(claimed: list[dict[str, Any]]) -> list[str]:
    return [task["id"] for task in claimed]


async def left(redis: Redis, kind: str = "greet") -> tuple[int, int]:
    """Entries in the streams of a kind, and how many of them are pending."""
    entries = pending = 0
    for lane in LANES:
        stream = stream_key("front", kind, lane)
        if await redis.exists(stream):
            entries += await redis.xlen(stream)
            pending += (await redis.xpending(stream, GROUP))["pending"]
    return entries, pending


async def test_a_claimed_task_is_started_and_its_entry_gone(tasks: Tasks) -> None:
    (task_id,) = await published(tasks)
    (task,) = await claim(tasks, lease_seconds=30)
    state = await tasks.state(task_id)

    assert (task["id"], task["attempt"], task["version"], task["payload"]) == (
        task_id,
        1,
        2,
        {"name": "Ada"},
    )
    assert (state.status, state.holder, state.worker) == ("running", f"{task_id}:1", "w-1")
    expires = datetime.fromisoformat(task["lease_expires_at"])
    assert timedelta(seconds=20) < expires - now() <= timedelta(seconds=30)
    assert await left(tasks.redis) == (0, 0)
    assert await claim(tasks) == []
    done = await tasks.post(f"/tasks/{task_id}/complete", {"attempt": 1, "result": {"hi": "Ada"}})
    assert done.json()["status"] == "completed"


async def test_high_goes_before_normal_and_low_within_the_limit(tasks: Tasks) -> None:
    low = await published(tasks, 2, priority="low")
    normal = await published(tasks, 2)
    high = await published(tasks, 2, priority="high")

    assert ids_of(await claim(tasks, limit=3)) == [*high, normal[0]]
    assert ids_of(await claim(tasks, limit=100)) == [normal[1], *low]


async def test_the_lowest_lane_moves_on_whatever_comes_in_above_it(tasks: Tasks) -> None:
    (low,) = await published(tasks, priority="low")
    await published(tasks, 12, priority="high")
    claimed = [ids_of(await claim(tasks))[0] for _ in range(11)]
    assert low in claimed


async def test_only_the_kinds_asked_for_are_claimed(tasks: Tasks) -> None:
    await published(tasks)
    assert await claim(tasks, kinds=["resize"]) == []
    assert len(await claim(tasks, kinds=["resize", "greet"])) == 1


async def test_a_waiting_claim_gets_what_comes(tasks: Tasks) -> None:
    waiting = asyncio.create_task(claim(tasks, wait_seconds=20, limit=5))
    ready = stream_key("front", "greet", "low")
    await eventually(lambda: tasks.redis.exists(ready), "the group")
    (task_id,) = await published(tasks, priority="low")
    assert ids_of(await waiting) == [task_id]


async def test_an_empty_wait_ends_in_time(tasks: Tasks) -> None:
    begun = time.monotonic()
    assert await claim(tasks, wait_seconds=0.3) == []
    assert 0.3 <= time.monotonic() - begun < 10


async def test_many_claims_at_once_share_the_tasks(tasks: Tasks) -> None:
    ids = await published(tasks, 30)
    answers = await asyncio.gather(*(claim(tasks, limit=7) for _ in range(10)))
    assert sorted(ids_of([task for answer in answers for task in answer])) == sorted(ids)
    assert await left(tasks.redis) == (0, 0)


async def test_entries_of_tasks_that_cannot_start_are_dropped(tasks: Tasks) -> None:
    started, cancelled, good = await published(tasks, 3)
    await tasks.service.execute(UUID(started), StartTask(holder="other", worker="w"))
    await tasks.post(f"/tasks/{cancelled}/cancel")
    stream = stream_key("front", "greet", "high")
    for forged in (str(new_task_id()), "nonsense", await tasks.create(GREET | {"queue": "elsewhere"})):
        await tasks.redis.xadd(stream, {"task": forged})

    assert ids_of(await claim(tasks)) == [good]
    assert await left(tasks.redis) == (0, 0)


async def test_a_paused_queue_keeps_its_entries_pending(tasks: Tasks) -> None:
    ids = await published(tasks, 2)
    await tasks.client.post("/queues/front/pause")
    assert await claim(tasks, wait_seconds=0.1) == []
    assert (await left(tasks.redis))[0] == 2

    waiting = asyncio.create_task(claim(tasks, limit=2, wait_seconds=20))
    await tasks.client.post("/queues/front/resume")
    assert ids_of(await waiting) == ids
    assert await left(tasks.redis) == (0, 0)


async def test_entries_of_a_dead_consumer_are_taken_over(tasks: Tasks) -> None:
    stream = stream_key("front", "greet", "normal")
    await tasks.redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
    (task_id,) = await published(tasks)
    await tasks.redis.xreadgroup(GROUP, "dead", {stream: ">"}, count=1)

    assert await claim(tasks) == []
    taken = await eventually(lambda: claim(tasks), "the entry to be idle for a lease time")
    assert ids_of(taken) == [task_id]
    assert await left(tasks.redis) == (0, 0)


async def test_a_lost_redis_costs_no_more_than_what_is_published_again(tasks: Tasks) -> None:
    (task_id,) = await published(tasks)
    assert await claim(tasks, kinds=["resize"]) == []  # the groups exist
    await tasks.redis.flushall()
    assert await claim(tasks) == []
    await tasks.publish(task_id)
    assert ids_of(await claim(tasks)) == [task_id]


async def test_a_client_that_went_away_leaves_its_task_to_others(
    dsn: str, redis_url: str, service: Service, redis: Redis
) -> None:
    async with on_port(create_app(settings_for(dsn, redis_url))) as address:
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=30) as client:
            tasks = Tasks(client, service, redis)
            gone = asyncio.create_task(claim(tasks, wait_seconds=50))
            await eventually(lambda: _blocked(redis), "the claim to wait")
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            (task_id,) = await published(tasks)
            found = await eventually(lambda: claim(tasks), "the task to be claimed")
        assert ids_of(found) == [task_id]
        assert (await service.state(UUID(task_id))).attempt == 1


async def _blocked(redis: Redis) -> bool:
    return int((await redis.info("clients"))["blocked_clients"]) > 0


async def test_without_redis_claims_alone_fail(dsn: str, service: Service, redis: Redis) -> None:
    async with in_process(settings_for(dsn, NO_REDIS)) as client:
        tasks = Tasks(client, service, redis)
        problem(await tasks.post(CLAIM, ME), 503, "broker_unavailable")
        task_id = await tasks.started()
        done = await tasks.post(f"/tasks/{task_id}/complete", {"attempt": 1, "result": None})
        ready = await client.get("/health/ready")
    assert done.status_code == 200
    assert (ready.status_code, ready.json()["degraded"]) == (200, ["claims: Redis does not answer"])


async def test_without_external_kinds_there_is_nothing_to_claim(dsn: str) -> None:
    async with in_process(settings_for(dsn, NO_REDIS, external_kinds={})) as client:
        problem(await client.post(CLAIM, json=ME), 422, "unknown_kind")


async def test_a_waiting_claim_is_answered_when_the_process_stops(
    dsn: str, redis_url: str, service: Service, redis: Redis
) -> None:
    app = create_app(settings_for(dsn, redis_url))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://api") as client,
    ):
        waiting = asyncio.create_task(Tasks(client, service, redis).post(CLAIM, ME | {"wait_seconds": 50}))
        await eventually(lambda: _waits(redis), "the claim's blocking read")
        for callback in app.state.on_stopping:
            callback()
        answer = await asyncio.wait_for(waiting, timeout=10)
    assert (answer.status_code, answer.json()["tasks"]) == (200, [])


async def _waits(redis: Redis) -> bool:
    clients: list[dict[str, str]] = await redis.client_list()
    return any(c["cmd"] == "xreadgroup" and "b" in c["flags"] for c in clients)
