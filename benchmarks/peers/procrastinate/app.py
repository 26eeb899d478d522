"""FastAPI in front of Procrastinate: one INSERT and commit a request."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import tasks
from peer_api import NewTask, make_app
from psycopg_pool import AsyncConnectionPool


class Tasks:
    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def submit(self, task: NewTask) -> str:
        return str(await tasks.add.defer_async(x=task.payload.x, y=task.payload.y))

    async def result(self, task_id: str) -> dict[str, int] | None:
        async with self._pool.connection() as connection:
            found = await connection.execute("SELECT sum FROM results WHERE id = %s", (int(task_id),))
            row = await found.fetchone()
        return None if row is None else {"sum": row[0]}

    async def completed(self) -> int:
        async with self._pool.connection() as connection:
            found = await connection.execute("SELECT count(*) FROM results")
            [count] = await found.fetchone()
        return count


@asynccontextmanager
async def open_tasks() -> AsyncIterator[Tasks]:
    async with tasks.opened(int(os.environ["API_CONNECTIONS"])) as pool:
        yield Tasks(pool)


app = make_app(open_tasks)
