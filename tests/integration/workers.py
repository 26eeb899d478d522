"""Workers in the test's own process, and the tasks they are given."""

import asyncio
from typing import Any

from pydantic import SecretStr
from redis.asyncio import Redis

from command_side.commands import CreateTask
from command_side.service import Origin
from command_side.worker.main import Worker
from events.task_state import TaskState
from taskledger.redis import GROUP, stream_key
from taskledger.settings import PostgresSettings, RedisSettings, Settings, WorkerSettings
from tests.support import Service, eventually

HANDLERS = ("tests.integration.worker_handlers", "examples.handlers")
LEASE_SECONDS = 1.5


class Running:
    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(worker.run(self.stop))

    async def ready(self) -> "Running":
        async def condition() -> bool:
            if self.task.done():
                self.task.result()
            return bool(self.worker.status()["ready"])

        await eventually(condition, "a ready worker")
        return self

    async def stopped(self) -> int:
        self.stop.set()
        return await asyncio.wait_for(self.task, 20)


def worker_settings(
    dsn: str,
    redis_url: str,
    lease_seconds: float = LEASE_SECONDS,
    handlers: tuple[str, ...] = HANDLERS,
    **options: Any,
) -> Settings:
    return Settings(
        postgres=PostgresSettings(dsn=SecretStr(dsn)),
        redis=RedisSettings(url=SecretStr(redis_url)),
        worker=WorkerSettings.model_validate({"drain_seconds": 0.2, "concurrency": 4, **options}),
        handlers=handlers,
        lease_seconds=lease_seconds,
    )


async def settled(service: Service, task: TaskState, status: str) -> TaskState:
    async def condition() -> TaskState | None:
        state = await service.state(task.id)
        return state if state.status == status else None

    try:
        state: TaskState = await eventually(condition, f"status {status} of {task.kind}")
    except AssertionError as error:
        error.add_note(f"it is {await service.state(task.id)}")
        raise
    return state


async def create(service: Service, kind: str, payload: Any = None, **options: Any) -> TaskState:
    command = CreateTask(kind=kind, payload={} if payload is None else payload, **options)
    return (await service.commands.create([command], Origin())).tasks[0]


async def submit(
    service: Service, redis: Redis, kind: str, payload: Any = None, **options: Any
) -> TaskState:
    task = await create(service, kind, payload, **options)
    await service.publish(redis, task)
    return task


def key_of(task: TaskState) -> str:
    return stream_key(task.queue, task.kind, task.priority)


async def is_empty(redis: Redis, task: TaskState) -> bool:
    pending = await redis.xpending(key_of(task), GROUP)
    return await redis.xlen(key_of(task)) == 0 and pending["pending"] == 0
