"""Reads of what was just written, over two query processes and a projector under load."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from command_side.commands import CancelTask, CreateTask
from command_side.service import Origin
from events.position import PositionToken
from tests.chaos.cluster import Cluster
from tests.support import Service, eventually

SESSIONS = 25
PAIRS = 400
"""Of each session."""


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_query_ten_thousand_reads_of_what_was_just_written_are_never_stale(
    service: Service, redis_url: str, tmp_path: Path
) -> None:
    """10,000 create-then-read pairs by 25 clients over two query processes, while the projector has a load
    beside them and is killed -> each read shows the task, or is refused with 503; no client goes back."""
    copies = {"query-api": 2, "projector": 2}
    stop = asyncio.Event()
    with Cluster(tmp_path, dsn=service.dsn, redis_url=redis_url, copies=copies) as cluster:
        limits = httpx.Limits(max_connections=SESSIONS)
        async with httpx.AsyncClient(trust_env=False, timeout=30, limits=limits) as client:
            loading = asyncio.create_task(load(service, client, cluster.query_urls[0], stop))
            sessions = [Session(service, client, cluster.query_urls, seed) for seed in range(SESSIONS)]
            running = asyncio.gather(*(session.run(PAIRS) for session in sessions))
            for killed in range(1, 4):

                async def so_many(killed: int = killed) -> bool:
                    return sum(s.pairs for s in sessions) >= killed * SESSIONS * PAIRS // 4

                await eventually(so_many, "a quarter of the pairs", within=300)
                await asyncio.to_thread(cluster.kill, f"projector-{killed % 2}")
            await running
            stop.set()
            await loading
    answered = sum(session.answered for session in sessions)
    refused = sum(session.refused for session in sessions)
    print(f"{answered} reads of what was just written: 0 stale, {refused} refused with 503")
    assert answered + refused == SESSIONS * PAIRS
    assert answered > 0.9 * SESSIONS * PAIRS


async def load(service: Service, client: httpx.AsyncClient, url: str, stop: asyncio.Event) -> None:
    """Batches, so that there is always something to fold; the next one once the last can be read."""
    command = CreateTask(kind="sum", payload={"x": 1, "y": 2}, tags=("load",))
    tag = await service.log.tag()
    while not stop.is_set():
        applied = await service.commands.create([command] * 50, Origin())
        at = {"min_position": str(PositionToken(applied.tasks[-1].position, tag))}
        while (await client.get(f"{url}/tasks", params={**at, "limit": "1"})).status_code == 503:
            continue


class Session:
    """Writes and reads in turn: each time at the position of the write, at either process."""

    def __init__(self, service: Service, client: httpx.AsyncClient, urls: Sequence[str], seed: int) -> None:
        self.answered = self.refused = 0
        self._service = service
        self._client = client
        self._urls = urls
        self._choice = random.Random(seed)
        self._highest = 0

    @property
    def pairs(self) -> int:
        return self.answered + self.refused

    async def run(self, pairs: int) -> None:
        tag = await self._service.log.tag()
        while self.pairs < pairs:
            task = await self._service.create()
            version, position = 1, task.position
            if self._choice.random() < 0.2:
                cancelled = await self._service.execute(task.id, CancelTask())
                version, position = 2, cancelled.state.position
            await self._read(task.id, version, PositionToken(max(position, self._highest), tag))

    async def _read(self, task_id: UUID, version: int, at: PositionToken) -> None:
        url = f"{self._choice.choice(self._urls)}/tasks/{task_id}"
        answer = await self._client.get(url, params={"min_position": str(at)})
        if answer.status_code == 503:
            assert answer.json()["code"] == "read_model_lagging", answer.text
            assert answer.headers["retry-after"] == "1"
            self.refused += 1
            return
        assert answer.status_code == 200, answer.text
        assert answer.json()["version"] == version
        reached = PositionToken.parse(answer.headers["x-position"]).position
        assert reached >= at.position
        self._highest = reached
        self.answered += 1
