"""Enqueues many tasks with Procrastinate's batch_defer: python enqueue.py COUNT."""

import asyncio
import json
import os
import sys
import time

import tasks
import uvloop

BATCH = int(os.environ["ENQUEUE_BATCH"])
CONNECTIONS = int(os.environ["ENQUEUE_CONNECTIONS"])


async def main(count: int) -> None:
    payloads = [{"x": n, "y": n} for n in range(count)]
    batches = iter([payloads[at : at + BATCH] for at in range(0, count, BATCH)])

    async def send() -> None:
        for batch in batches:
            await tasks.add.batch_defer_async(*batch)

    async with tasks.opened(CONNECTIONS):
        began = time.perf_counter()
        await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
        print(json.dumps({"seconds": time.perf_counter() - began}))


uvloop.run(main(int(sys.argv[1])))
