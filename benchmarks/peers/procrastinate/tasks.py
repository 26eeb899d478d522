"""The task, and Procrastinate on a pool of ours: in autocommit, as each of its calls is one statement, and
without asking before each use whether the connection lives."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from procrastinate import App, JobContext, PsycopgConnector
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

connector = PsycopgConnector(json_dumps=orjson.dumps, json_loads=orjson.loads)
app = App(connector=connector)


async def commit_each(connection: AsyncConnection) -> None:
    await connection.set_autocommit(True)


@asynccontextmanager
async def opened(connections: int) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(
        os.environ["DSN"], min_size=connections, max_size=connections, configure=commit_each
    ) as pool:
        await pool.wait()
        async with app.open_async(pool):
            yield pool


@app.task(name="sum", pass_context=True)
async def add(context: JobContext, x: int, y: int) -> None:
    async with connector.pool.connection() as connection:
        await connection.execute(
            "INSERT INTO results (id, sum) VALUES (%s, %s) ON CONFLICT DO NOTHING",  # it may run again
            (context.job.id, x + y),
        )
