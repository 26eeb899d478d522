"""PostgreSQL comes back without its latest commits: a backup was restored, or a lagging copy took over."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from redis.asyncio import Redis

from projector.runner import Projector
from projector.verify import verify
from taskledger.redis import stream_key
from tests.chaos.inprocess import System
from tests.chaos.store import Store, command_api
from tests.integration.command_api import problem
from tests.integration.projection import following
from tests.integration.query import query_api
from tests.support import Service, eventually

pytestmark = pytest.mark.xdist_group("chaos-postgres")

LOST = stream_key("lost", "sum", "normal")


@pytest.fixture
def dsn(store: Store) -> str:
    """What the service is built on."""
    return store.direct


@pytest.fixture
async def system(store: Store, service: Service, redis_url: str) -> AsyncIterator[System]:
    system = System(service, redis_url, dsn=store.dsn)
    yield system
    await system.stop()


async def not_ready(client: httpx.AsyncClient) -> bool:
    answer = await client.get("/health/ready")
    return answer.status_code == 503 and "taskledger restored" in answer.json()["detail"]


def is_ready(client: httpx.AsyncClient) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        return (await client.get("/health/ready")).status_code == 200

    return ready


def head(store: Store) -> int:
    return int(store.sql("select max(notification_id) from taskledger.task_events")[0][0])


async def test_postgres_restored_to_an_older_point(store: Store, system: System, redis: Redis) -> None:
    """The log lost its end under running processes -> each of them notices, says so and does nothing, until
    it has a new tag; then positions of the lost part are refused and its tasks are not run."""
    async with command_api(store) as client, query_api(store.dsn) as reads:
        kept = [await client.created() for _ in range(3)]
        await asyncio.to_thread(store.servers.save_postgres)
        await eventually(is_ready(client.http))
        with following(store.dsn) as projector:
            dispatcher = await system.dispatcher()
            lost = [await client.created(queue="lost") for _ in range(50)]
            token = (await client.submit()).json()["position"]

            async def all_known() -> bool:
                assert (await reads.get(f"/tasks/{lost[-1]}?min_position={token}")).status_code == 200
                assert await is_ready(reads)()
                return await redis.xlen(LOST) == 50

            await eventually(all_known, "entries, and rows")
            await asyncio.to_thread(store.servers.roll_back_postgres)

            await eventually(lambda: not_ready(client.http), "the command API to notice")
            await eventually(lambda: not_ready(reads), "the query API to notice")
            await told(lambda: dispatcher.waiting_for.get("log"))
            await told(lambda: projector.status().waiting_for)
            assert not projector.status().ready
            answer = problem(await client.submit(), 503, "store_unavailable")
            assert "taskledger restored" in answer["detail"]
            assert head(store) < 50
            assert await redis.xlen(LOST) == 50

            await restored(store)
            await eventually(client.accepts, "the command API")
            await eventually(is_ready(reads), "the query API")
            await eventually(lambda: ready(projector), "the projector")
            problem(await reads.get(f"/tasks/{lost[-1]}?min_position={token}"), 409, "log_rewound")
            kept.append(await client.created(queue="lost"))
            await at_work_again(store, system, redis, kept)
        assert verify(store.direct) == 0


async def restored(store: Store) -> None:
    """What the operator does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "taskledger",
        "restored",
        env={**os.environ, "TASKLEDGER__POSTGRES__DSN": store.direct},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert b"positions of the old one are refused" in said


async def told(waiting_for: Callable[[], str | None]) -> None:
    async def says_so() -> bool:
        return "taskledger restored" in (waiting_for() or "")

    await eventually(says_so, f"the way out, {waiting_for()}")


async def ready(projector: Projector) -> bool:
    return projector.status().ready


async def at_work_again(store: Store, system: System, redis: Redis, kept: list[str]) -> None:
    """What the log has is run, and what it lost is not, though its entries were there."""
    tasks = {row[0] for row in store.sql("select originator_id from taskledger.task_events")}
    worker = await system.worker(queues=["default", "lost"])

    async def completed() -> bool:
        return all(store.stored(task)[-1] == "TaskCompleted" for task in kept)

    await eventually(completed, "the tasks that were kept")
    assert await redis.xlen(LOST) == 0
    assert worker.worker.status()["entries"]["started"] <= len(tasks)
