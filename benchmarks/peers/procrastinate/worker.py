"""Procrastinate's worker, woken by NOTIFY."""

import os

import tasks
import uvloop


async def main() -> None:
    async with tasks.opened(int(os.environ["WORKER_CONNECTIONS"])):
        await tasks.app.run_worker_async(concurrency=int(os.environ["CONCURRENCY"]))


uvloop.run(main())
