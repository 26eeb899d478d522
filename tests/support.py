"""What tests share: waiting for a condition, building commands, a database of one's own."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from redis.asyncio import Redis

from command_side.clock import DatabaseClock
from command_side.commands import CreateTask, TaskCommand
from command_side.service import Applied, CommandService, Origin
from events.codec import EventMapper
from events.group_commit import GroupCommit
from events.postgres_log import PostgresLog
from events.task_state import TaskState
from taskledger.postgres import Pool

POLL_SECONDS = 0.02


async def eventually(
    condition: Callable[[], Awaitable[Any]], description: str = "the condition", *, within: float = 15.0
) -> Any:
    """The first true answer of `condition`; AssertionError with the last one if there is none in time.
    What it raises counts as "not yet" and is told in the end."""
    deadline = time.monotonic() + within
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = await condition()
        except (AssertionError, LookupError, OSError) as error:
            last = error
        else:
            if last:
                return last
        await asyncio.sleep(POLL_SECONDS)
    raise AssertionError(f"{description} did not come true within {within} s; last: {last!r}")


def wait_until(
    condition: Callable[[], Any], description: str = "the condition", *, within: float = 15.0
) -> Any:
    """As eventually(), for tests without a loop."""
    deadline = time.monotonic() + within
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = condition()
        except (AssertionError, LookupError, OSError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"{description} did not come true within {within} s; last: {last!r}")


@dataclass(frozen=True, slots=True)
class Service:
    """The command side without its APIs, over a real database."""

    dsn: str
    pool: Pool
    log: PostgresLog
    commits: GroupCommit
    clock: DatabaseClock
    commands: CommandService
    mapper: EventMapper

    async def create(self, kind: str = "sum", payload: Any = None, **options: Any) -> TaskState:
        command = CreateTask(kind=kind, payload=payload or {"x": 1, "y": 2}, **options)
        return (await self.commands.create([command], Origin())).tasks[0]

    async def execute(self, task_id: UUID, command: TaskCommand) -> Applied:
        return await self.commands.execute(task_id, command)

    async def state(self, task_id: UUID) -> TaskState:
        return (await self.commands.load([task_id]))[task_id]

    async def topics(self, task_id: UUID) -> list[str]:
        return [event.topic for event in await self.log.read_stream(task_id)]

    async def publish(self, redis: Redis, task: TaskState) -> None:
        """The relay's part, by hand: the entry of a queued task."""
        from taskledger.redis import stream_key

        await redis.xadd(
            stream_key(task.queue, task.kind, task.priority),
            {"task": str(task.id)},
            id=f"{task.queued_position}-1",
        )


def now() -> datetime:
    return datetime.now(UTC)
