"""FastAPI in front of the application: `save()` in a thread, then the id into a Redis stream."""

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import tasks
from peer_api import NewTask, make_app
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

THREADS = int(os.environ["API_THREADS"])


class Tasks:
    def __init__(
        self, application: tasks.Tasks, threads: ThreadPoolExecutor, redis: Redis, pool: AsyncConnectionPool
    ) -> None:
        self._application = application
        self._threads = threads
        self._redis = redis
        self._pool = pool

    async def submit(self, task: NewTask) -> str:
        requested = tasks.Task(kind=task.kind, x=task.payload.x, y=task.payload.y)
        save = partial(self._application.save, requested)
        await asyncio.get_running_loop().run_in_executor(self._threads, save)
        await self._redis.xadd(tasks.STREAM, {"id": requested.id.bytes})
        return str(requested.id)

    async def result(self, task_id: str) -> dict[str, Any] | None:
        query = "SELECT sum FROM v_tasks WHERE id = %s AND status = 'completed'"
        async with self._pool.connection() as connection:
            row = await (await connection.execute(query, (task_id,))).fetchone()
        return None if row is None else {"sum": row[0]}

    async def completed(self) -> int:
        query = "SELECT count(*) FROM v_tasks WHERE status = 'completed'"
        async with self._pool.connection() as connection:
            [count] = await (await connection.execute(query)).fetchone()
        return count


@asynccontextmanager
async def open_tasks() -> AsyncIterator[Tasks]:
    application = tasks.Tasks(tasks.environment(THREADS))
    reading = AsyncConnectionPool(os.environ["DSN"], min_size=2, max_size=4, kwargs={"autocommit": True})
    with ThreadPoolExecutor(THREADS) as threads:
        async with Redis.from_url(os.environ["REDIS_URL"]) as redis, reading as pool:
            yield Tasks(application, threads, redis, pool)
    application.close()


app = make_app(open_tasks)
