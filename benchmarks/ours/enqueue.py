"""Creates many tasks through `POST /tasks/batch` of one API process: python enqueue.py URL COUNT."""

import asyncio
import json
import sys
import time
from http import HTTPStatus

from benchmarks.wire import Connection, request

BATCH = 1_000
CONNECTIONS = 4


def body(numbers: range) -> bytes:
    return json.dumps({"tasks": [{"kind": "sum", "payload": {"x": n, "y": n}} for n in numbers]}).encode()


async def main(url: str, count: int) -> None:
    numbers = range(count)
    bodies = (body(numbers[at : at + BATCH]) for at in range(0, count, BATCH))
    requests = iter([request("POST", url, body) for body in bodies])

    async def send() -> None:
        connection = await Connection.open(url)
        for data in requests:
            answer = await connection.ask(data)
            if answer.status != HTTPStatus.CREATED:
                raise RuntimeError(f"{answer.status}: {answer.body[:500]!r}")
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
    print(json.dumps({"seconds": time.perf_counter() - began}))


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
