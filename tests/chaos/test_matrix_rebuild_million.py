"""The projector's rows of the fault matrix, continued: a million events and five kills."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, cast

import httpx
import pytest
from redis.asyncio import Redis

from benchmarks.history import fill, pass_dispatcher
from projector.rebuild import rebuild
from projector.verify import inspect
from tests.chaos.cluster import Cluster
from tests.chaos.handlers import effects
from tests.chaos.rebuilding import Audience, Rebuild, folded
from tests.integration.projection import live_number, present, table
from tests.support import eventually, wait_until

TASKS: Final = 333_334
EVENTS: Final = 3 * TASKS
KILLS: Final = 5
COPIES: Final = {"command-api": 1, "query-api": 2, "dispatcher": 1, "projector": 1, "worker": 1}

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1_800)]


async def test_projector_rebuild_of_a_million_events_killed_five_times_under_load_fails_no_read(
    dsn: str, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    """SIGKILL of `rebuild` five times in the middle of a million events, both APIs under load -> 0 reads
    fail, 0 are mixed or older, no task runs again or is published again, the digests are equal; so it is
    with `--rollback`."""
    await asyncio.to_thread(fill, dsn, TASKS)
    await asyncio.to_thread(pass_dispatcher, dsn)
    await asyncio.to_thread(rebuild, dsn)
    ids = [str(row["id"]) for row in await asyncio.to_thread(table, dsn)][:: TASKS // 500]
    async with AsyncExitStack() as stack:
        cluster = stack.enter_context(
            Cluster(tmp_path, dsn=dsn, redis_url=redis_url, copies=COPIES, lease_seconds=60)
        )
        clients = [await stack.enter_async_context(_client(url)) for url in cluster.query_urls]
        submit = await stack.enter_async_context(_client(cluster.command_urls[0]))
        audience = Audience(clients, ids)
        created: list[str] = []
        async with submitting(submit, audience, created), audience.reading(4):
            resumed = [await asyncio.to_thread(_killed, dsn, tmp_path, n) for n in range(KILLS)]
            with Rebuild(dsn, tmp_path) as last:
                said = await asyncio.to_thread(last.finished, 600)
            resumed.append(last.resumed())
            assert live_number(dsn) == 2
            with Rebuild(dsn, tmp_path, "--rollback") as back:
                await asyncio.to_thread(back.finished, 120)
            assert live_number(dsn) == 1
            await audience.seen_more(200)
        await eventually(lambda: _all_done(clients[0], len(created)), "all to be done", within=120)
        executed = Counter(effect.task for effect in effects(cluster.effects_file))
    assert "were equal" in said
    assert resumed[0] is None
    progress = [at for at in resumed if at is not None]
    assert len(progress) == KILLS
    assert progress == sorted(progress)
    assert 0 < progress[0] < EVENTS
    assert audience.failures == []
    assert audience.mixed(dsn) == []
    assert len(audience.tasks) > 1_000
    assert executed == Counter(created)
    assert await _published(redis) == len(created)
    assert [(g.number, g.state) for g in present(dsn)] == [(1, "live"), (2, "retired")]
    assert (await asyncio.to_thread(inspect, dsn)).differences == []


def _killed(dsn: str, folder: Path, number: int) -> int | None:
    """In the middle of the fold, further on each time. What it had found folded, if it resumed."""
    enough = (number + 1) * EVENTS // (KILLS + 1)
    with Rebuild(dsn, folder) as process:
        wait_until(
            lambda: folded(dsn) >= enough and (number == 0 or process.resumed() is not None),
            "the rebuild to be further on",
            within=300,
        )
        process.killed()
        return process.resumed()


def _client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=30)


@asynccontextmanager
async def submitting(
    client: httpx.AsyncClient, audience: Audience, created: list[str]
) -> AsyncGenerator[None]:
    """One task after the other, each read back at its own position. `created` are their ids."""
    stop = asyncio.Event()

    async def submit() -> None:
        while not stop.is_set():
            answer = await client.post("/tasks", json={"kind": "mark", "payload": {"mark": "m"}})
            assert answer.status_code == 201, answer.text
            created.append(answer.json()["id"])
            await audience.hear_of(answer.json()["id"], answer.json()["position"])

    async with asyncio.TaskGroup() as group:
        group.create_task(submit())
        try:
            yield
        finally:
            stop.set()


async def _all_done(client: httpx.AsyncClient, created: int) -> bool:
    stats = (await client.get("/stats")).json()
    return bool(stats["by_status"]["completed"] == TASKS + created)


async def _published(redis: Redis) -> int:
    """Entries that were ever added to a stream of tasks."""
    added = 0
    async for key in cast("AsyncIterator[str]", redis.scan_iter(_type="stream")):
        stream = await redis.xinfo_stream(key)
        added += int(stream["entries-added"])
    return added
