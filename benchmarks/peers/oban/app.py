"""FastAPI in front of oban: one INSERT and commit a request."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import tasks
from oban import Oban
from oban._recorded import decode_recorded
from peer_api import NewTask, make_app
from psycopg_pool import AsyncConnectionPool


class Tasks:
    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._oban = Oban(pool=pool)

    async def submit(self, task: NewTask) -> str:
        job = await self._oban.enqueue(tasks.Sum.new({"x": task.payload.x, "y": task.payload.y}))
        return str(job.id)

    async def result(self, task_id: str) -> dict[str, Any] | None:
        query = "SELECT meta ->> 'return' FROM oban_jobs WHERE id = %s AND state = 'completed'"
        async with self._pool.connection() as connection:
            row = await (await connection.execute(query, (int(task_id),))).fetchone()
        return None if row is None else decode_recorded(row[0])

    async def completed(self) -> int:
        query = "SELECT count(*) FROM oban_jobs WHERE state = 'completed'"
        async with self._pool.connection() as connection:
            [count] = await (await connection.execute(query)).fetchone()
        return count


@asynccontextmanager
async def open_tasks() -> AsyncIterator[Tasks]:
    async with tasks.opened(int(os.environ["API_CONNECTIONS"]), autocommit=True) as pool:
        yield Tasks(pool)


app = make_app(open_tasks)
