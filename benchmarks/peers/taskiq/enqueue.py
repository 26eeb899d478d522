"""Rows by arrays, messages by pipelines: python enqueue.py COUNT."""

import asyncio
import json
import os
import sys
import time

import asyncpg
import orjson
from redis.asyncio import Redis
from worker import add, broker

BATCH = 1_000


async def main(count: int) -> None:
    connection = await asyncpg.connect(os.environ["DSN"])
    redis = Redis.from_url(os.environ["REDIS_URL"])
    began = time.perf_counter()
    for at in range(0, count, BATCH):
        payloads = [{"x": n, "y": n} for n in range(at, min(at + BATCH, count))]
        ids = await connection.fetch(
            "INSERT INTO tasks (kind, status, payload)"
            " SELECT 'sum', 'created', payload FROM unnest($1::jsonb[]) AS payload RETURNING id",
            [orjson.dumps(payload).decode() for payload in payloads],
        )
        pipeline = redis.pipeline(transaction=False)
        for (task_id,), payload in zip(ids, payloads, strict=True):
            message = add.kicker()._prepare_message(task_id, payload)  # noqa: SLF001  there is no batch API
            pipeline.xadd(broker.queue_name, {b"data": broker.formatter.dumps(message).message})
        await pipeline.execute()
    print(json.dumps({"seconds": time.perf_counter() - began}))
    await redis.aclose()
    await connection.close()


asyncio.run(main(int(sys.argv[1])))
