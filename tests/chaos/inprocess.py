"""A dispatcher and workers in the test's own process, on servers that the test breaks."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

from redis.asyncio import Redis

from command_side.clock import DatabaseClock
from command_side.commands import CreateTask
from command_side.dispatcher.main import serve
from command_side.dispatcher.status import DispatcherStatus
from command_side.dispatcher.sweeper import Pace
from command_side.service import CommandService, Origin
from command_side.worker.main import Worker
from events.codec import EventMapper
from events.group_commit import GroupCommit
from events.postgres_log import PostgresLog
from events.task_events import TaskFailed, TaskQueued
from events.task_state import SETTLED, TaskState
from taskledger.postgres import connect, make_pool
from taskledger.redis import GROUP
from tests.integration.workers import LEASE_SECONDS, Running, worker_settings
from tests.support import Service, eventually

ONCE = ["TaskCreated", "TaskStarted", "TaskCompleted"]
"""The history of a task to which nothing happened."""


class System:
    """What runs beside the servers. `service` goes to the database directly, whatever happens to others."""

    def __init__(self, service: Service, redis_url: str, *, dsn: str | None = None) -> None:
        self.service = service
        self.dsn = dsn or service.dsn
        self.redis_url = redis_url
        self.lease_seconds = LEASE_SECONDS
        self.dispatchers: list[DispatcherStatus] = []
        self.workers: list[Running] = []
        self._ends: list[tuple[asyncio.Event, asyncio.Task[Any]]] = []

    async def dispatcher(self, *, ready: bool = True, **pace: float) -> DispatcherStatus:
        chosen: dict[str, float] = {"lease": self.lease_seconds, "hole_patience": 0.5, **pace}
        status, stop = DispatcherStatus(), asyncio.Event()
        settings = worker_settings(self.dsn, self.redis_url)
        task = asyncio.create_task(serve(settings, stop, status, Pace(**chosen)))
        self._ends.append((stop, task))
        self.dispatchers.append(status)
        if ready:

            async def leads() -> bool:
                return status.leader and status.ready

            await eventually(leads, "a leading dispatcher")
        return status

    async def worker(self, *, ready: bool = True, dsn: str | None = None, **options: Any) -> Running:
        settings = worker_settings(dsn or self.dsn, self.redis_url, self.lease_seconds, **options)
        running = Running(Worker(settings))
        self.workers.append(running)
        self._ends.append((running.stop, running.task))
        return await running.ready() if ready else running

    def forget(self, worker: Running) -> None:
        """It has ended with an error that was expected."""
        self._ends.remove((worker.stop, worker.task))

    async def stop(self) -> None:
        for stop, _ in self._ends:
            stop.set()
        for _, task in self._ends:
            await asyncio.wait_for(task, 30)

    async def create(self, kind: str, payload: Any, count: int, **options: Any) -> list[TaskState]:
        command = CreateTask(kind=kind, payload=payload, **options)
        return (await self.service.commands.create([command] * count, Origin())).tasks

    async def echoes(self, count: int, **options: Any) -> list[TaskState]:
        return await self.create("echo", {}, count, **options)

    async def statuses(self, tasks: Sequence[TaskState]) -> list[str]:
        states = await self.service.commands.load([task.id for task in tasks])
        return [states[task.id].status for task in tasks]

    async def all(self, tasks: Sequence[TaskState], status: str, *, within: float = 40.0) -> None:
        async def reached() -> bool:
            found = await self.statuses(tasks)
            assert set(found) == {status}, {name: found.count(name) for name in found}
            return True

        await eventually(reached, f"every task to be {status}", within=within)

    async def settled(self, tasks: Sequence[TaskState], *, within: float = 40.0) -> None:
        async def reached() -> bool:
            return set(await self.statuses(tasks)) <= SETTLED

        await eventually(reached, "every task to settle", within=within)

    async def completed_once(self, tasks: Sequence[TaskState], *, within: float = 40.0) -> None:
        """Every task completes, after one attempt and without a second queueing."""
        await self.all(tasks, "completed", within=within)
        await self.ran_once(tasks)

    async def ran_once(self, tasks: Sequence[TaskState]) -> None:
        for task in tasks:
            assert await self.service.topics(task.id) == ONCE

    async def losses(self, task: TaskState) -> list[tuple[str, bool]]:
        """Cause of each failed attempt, and whether it was counted."""
        mapper = EventMapper()
        events = [mapper.decode(event) for event in await self.service.log.read_stream(task.id)]
        return [(event.cause, event.counted) for event in events if isinstance(event, TaskFailed)]

    async def queueings(self, task: TaskState) -> list[str]:
        """Why the task was queued anew, each time."""
        mapper = EventMapper()
        events = [mapper.decode(event) for event in await self.service.log.read_stream(task.id)]
        return [event.reason for event in events if isinstance(event, TaskQueued)]


async def nothing_left(redis: Redis, queue: str) -> bool:
    """No stream of the queue holds an entry, and no group a pending one."""
    streams: Any = await redis.keys(f"{{tl:{queue}}}:*:*")
    for key in cast("list[str]", streams):
        assert await redis.xlen(key) == 0, key
        for group in await redis.xinfo_groups(key):
            assert (group["name"], group["pending"]) == (GROUP, 0), key
    return True


@asynccontextmanager
async def service_on(dsn: str) -> AsyncGenerator[Service]:
    """As the fixture `service`, on another database."""
    async with make_pool(dsn, name="test", size=4) as pool:
        log = PostgresLog(pool, lambda: connect(dsn, name="test-append"))
        commits, clock, mapper = GroupCommit(log), DatabaseClock(), EventMapper()
        clock.observe(datetime.now(UTC))
        yield Service(dsn, pool, log, commits, clock, CommandService(log, commits, mapper, clock), mapper)
        await commits.drain()
        await log.close()
