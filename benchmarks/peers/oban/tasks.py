"""The task, whose result oban records in its row, and a pool."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from oban import Job, Record, worker
from psycopg_pool import AsyncConnectionPool


@worker(queue="default")
class Sum:
    async def process(self, job: Job) -> Record:
        return Record({"sum": job.args["x"] + job.args["y"]})


@asynccontextmanager
async def opened(connections: int, *, autocommit: bool = False) -> AsyncIterator[AsyncConnectionPool]:
    """With `autocommit`, one job a call costs one round trip; many a call would be committed one by one."""
    async with AsyncConnectionPool(
        os.environ["DSN"], min_size=connections, max_size=connections, kwargs={"autocommit": autocommit}
    ) as pool:
        await pool.wait()
        yield pool
