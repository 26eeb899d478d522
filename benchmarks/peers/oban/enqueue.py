"""Enqueues many tasks with oban's enqueue_many: python enqueue.py COUNT."""

import asyncio
import json
import os
import sys
import time

import tasks
import uvloop
from oban import Oban

BATCH = int(os.environ["ENQUEUE_BATCH"])
CONNECTIONS = int(os.environ["ENQUEUE_CONNECTIONS"])


async def main(count: int) -> None:
    async with tasks.opened(CONNECTIONS) as pool:
        oban = Oban(pool=pool)
        began = time.perf_counter()
        jobs = [tasks.Sum.new({"x": n, "y": n}) for n in range(count)]
        batches = iter([jobs[at : at + BATCH] for at in range(0, count, BATCH)])

        async def send() -> None:
            for batch in batches:
                await oban.enqueue_many(batch)

        await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
        print(json.dumps({"seconds": time.perf_counter() - began}))


uvloop.run(main(int(sys.argv[1])))
