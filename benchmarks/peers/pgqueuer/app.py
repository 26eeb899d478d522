"""FastAPI in front of PgQueuer: one INSERT and commit a request."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import orjson
from peer_api import NewTask, make_app
from pgqueuer import AsyncpgPoolDriver, Queries

CONNECTIONS = int(os.environ["API_CONNECTIONS"])


class Tasks:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._queries = Queries(AsyncpgPoolDriver(pool))

    async def submit(self, task: NewTask) -> str:
        [job] = await self._queries.enqueue("sum", orjson.dumps(task.payload.model_dump()))
        return str(job)

    async def result(self, task_id: str) -> dict[str, int] | None:
        found = await self._pool.fetchval("SELECT sum FROM results WHERE id = $1", int(task_id))
        return None if found is None else {"sum": found}

    async def completed(self) -> int:
        return await self._pool.fetchval("SELECT count(*) FROM results")


@asynccontextmanager
async def open_tasks() -> AsyncIterator[Tasks]:
    async with asyncpg.create_pool(os.environ["DSN"], min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
        yield Tasks(pool)


app = make_app(open_tasks)
