"""Tasks by `enqueue_many`: python enqueue.py COUNT."""

import json
import sys
import time

import anyio
from worker import add, worker

BATCH = 1_000


async def main(count: int) -> None:
    async with worker:
        began = time.perf_counter()
        for at in range(0, count, BATCH):
            await worker.enqueue_many([add.enqueue(n, n) for n in range(at, min(at + BATCH, count))])
        print(json.dumps({"seconds": time.perf_counter() - began}))


anyio.run(main, int(sys.argv[1]), backend_options={"use_uvloop": True})
