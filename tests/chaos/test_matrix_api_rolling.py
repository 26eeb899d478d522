"""A release rolls through everything under load: no request and no task is lost, and nobody notices."""

import asyncio
import itertools
import time
from pathlib import Path
from uuid import uuid4

import pytest

from events.task_events import TaskCompleted, TaskFailed
from tests.chaos.cluster import Cluster
from tests.chaos.wire import Answer, Wire, get, post
from tests.support import Service, eventually

EXIT_SECONDS = 10.0
SLOW_SECONDS = 3.0
"""Longer than a stopping worker waits (2 s): such a task is handed back."""


class Balanced:
    """A client behind a balancer: it keeps a connection to one copy, and moves to the next when it is
    refused, told to go or answered 503."""

    def __init__(self, urls: list[str]) -> None:
        self.moves = 0
        self._urls = itertools.cycle(urls)
        self._connection: Wire | None = None

    async def ask(self, request: bytes) -> Answer:
        """Raises OSError or EOFError for a request that was sent and not answered."""
        for _ in range(200):
            if self._connection is None:
                try:
                    self._connection = await Wire.open(next(self._urls))
                except ConnectionRefusedError:
                    self.moves += 1
                    await asyncio.sleep(0.02)
                    continue
            answer = await self._connection.ask(request)
            if answer.headers.get("connection") == "close" or answer.status == 503:
                self.moves += 1
                await self.close()
            if answer.status != 503:
                return answer
        raise AssertionError("no copy answers")

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


class User:
    """Submits a task, reads it back at the position it was given, and does so again."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.acknowledged: list[str] = []
        self.stop = False
        self._commands = Balanced(cluster.command_urls)
        self._queries = Balanced(cluster.query_urls)
        self._number = number

    @property
    def moves(self) -> int:
        return self._commands.moves + self._queries.moves

    async def run(self) -> None:
        try:
            for turn in itertools.count():
                if self.stop:
                    return
                await self._once(slow=(turn + self._number) % 20 == 0)
        finally:
            await self._commands.close()
            await self._queries.close()

    async def _once(self, *, slow: bool) -> None:
        mark = uuid4().hex
        payload = {"mark": mark, "seconds": SLOW_SECONDS} if slow else {"mark": mark}
        body = {"kind": "slow" if slow else "mark", "payload": payload}
        created = await self._commands.ask(post(body, idempotency_key=mark))
        assert created.status == 201, created
        task_id, position = created.document["id"], created.document["position"]
        self.acknowledged.append(task_id)
        read = await self._queries.ask(get(f"/tasks/{task_id}?min_position={position}"))
        assert (read.status, read.document["id"]) == (200, task_id)


@pytest.mark.faults
async def test_api_and_all_others_restarted_one_by_one(
    tmp_path: Path, service: Service, redis_url: str
) -> None:
    """SIGTERM to each of two copies of everything in turn -> every request is answered, every acknowledged
    task completes, what was handed back counts as no attempt, and all end in time with code 0."""
    cluster = Cluster(tmp_path, dsn=service.dsn, redis_url=redis_url, lease_seconds=5)
    try:
        await asyncio.to_thread(cluster.start)
        users = [User(cluster, n) for n in range(4)]
        running = [asyncio.create_task(user.run()) for user in users]
        for name in cluster.names:
            since = time.monotonic()
            code = await asyncio.to_thread(cluster.terminate, name, EXIT_SECONDS)
            assert (name, code) == (name, 0), cluster.said(name)
            assert time.monotonic() - since < EXIT_SECONDS
            await asyncio.to_thread(cluster.await_ready, name)
            assert not any(user.done() for user in running)
        for user in users:
            user.stop = True
        await asyncio.gather(*running)
        acknowledged = [task for user in users for task in user.acknowledged]
        await _all_completed(service, acknowledged)
        verified = await asyncio.to_thread(cluster.run, "verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
    finally:
        await asyncio.to_thread(cluster.stop)
    assert sum(user.moves for user in users) > 0
    assert len(set(acknowledged)) == len(acknowledged) > 50


async def _all_completed(service: Service, acknowledged: list[str]) -> None:
    async def completed() -> bool:
        return len(await _of(service, "TaskCompleted")) == len(acknowledged)

    await eventually(completed, "every task to be completed", within=30)
    done = [event for event in await _of(service, "TaskCompleted") if isinstance(event, TaskCompleted)]
    assert sorted(str(event.originator_id) for event in done) == sorted(acknowledged)
    assert len(await _of(service, "TaskCreated")) == len(acknowledged)
    failed = [event for event in await _of(service, "TaskFailed") if isinstance(event, TaskFailed)]
    assert {(event.cause, event.counted) for event in failed} == {("handed_back", False)}


async def _of(service: Service, topic: str) -> list[object]:
    """All events of one type."""
    found: list[object] = []
    position = 0
    while events := await service.log.read_after(position, limit=1000):
        position = events[-1].id
        found += [service.mapper.decode(event) for event in events if event.topic == topic]
    return found
