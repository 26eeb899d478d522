"""Enqueues many tasks with PgQueuer's own bulk INSERT: python enqueue.py COUNT."""

import json
import os
import sys
import time

import asyncpg
import orjson
import uvloop
from pgqueuer import AsyncpgDriver, Queries

BATCH = int(os.environ["ENQUEUE_BATCH"])


async def main(count: int) -> None:
    payloads: list[bytes | None] = [orjson.dumps({"x": n, "y": n}) for n in range(count)]
    connection = await asyncpg.connect(os.environ["DSN"])
    queries = Queries(AsyncpgDriver(connection))
    began = time.perf_counter()
    for at in range(0, count, BATCH):
        part = payloads[at : at + BATCH]
        await queries.enqueue(["sum"] * len(part), part, [0] * len(part))
    print(json.dumps({"seconds": time.perf_counter() - began}))
    await connection.close()


uvloop.run(main(int(sys.argv[1])))
