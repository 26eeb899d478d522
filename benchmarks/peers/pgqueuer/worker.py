"""PgQueuer's worker; each task inserts its result before PgQueuer marks it as done, batch by batch."""

import os

import asyncpg
import orjson
import uvloop
from pgqueuer import AsyncpgPoolDriver, Job, PgQueuer

BATCH = int(os.environ["BATCH"])
CONNECTIONS = int(os.environ["WORKER_CONNECTIONS"])


async def main() -> None:
    async with asyncpg.create_pool(os.environ["DSN"], min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
        service = PgQueuer(AsyncpgPoolDriver(pool))

        @service.entrypoint("sum")
        async def add(job: Job) -> None:
            payload = orjson.loads(job.payload or b"{}")
            await pool.execute(
                "INSERT INTO results (id, sum) VALUES ($1, $2) ON CONFLICT DO NOTHING",  # it may run again
                job.id,
                payload["x"] + payload["y"],
            )

        await service.run(batch_size=BATCH)


uvloop.run(main())
