"""Messages by pipelines: python enqueue.py COUNT."""

import asyncio
import json
import os
import sys
import time

from redis.asyncio import Redis
from sending import push
from worker import add

BATCH = 1_000


async def main(count: int) -> None:
    async with Redis.from_url(os.environ["REDIS_URL"]) as redis:
        began = time.perf_counter()
        for at in range(0, count, BATCH):
            async with redis.pipeline() as pipeline:
                for n in range(at, min(at + BATCH, count)):
                    push(pipeline, add.message(n, n))
                await pipeline.execute()
        print(json.dumps({"seconds": time.perf_counter() - began}))


asyncio.run(main(int(sys.argv[1])))
