"""oban's own loop, with one queue."""

import asyncio
import os

import tasks
import uvloop
from oban import Oban

QUEUE = {"limit": int(os.environ["LIMIT"]), "debounce_interval": float(os.environ["DEBOUNCE"])}


async def main() -> None:
    async with (
        tasks.opened(int(os.environ["WORKER_CONNECTIONS"])) as pool,
        Oban(pool=pool, queues={"default": QUEUE}),
    ):
        await asyncio.Event().wait()


uvloop.run(main())
