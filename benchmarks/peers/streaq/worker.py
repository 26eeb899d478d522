"""The worker and its one task."""

import os
from datetime import timedelta
from typing import Any

import orjson
from streaq import Worker


def _encode(value: Any) -> bytes:
    return orjson.dumps(value, default=repr)


worker = Worker(
    os.environ["REDIS_URL"],
    concurrency=int(os.environ["CONCURRENCY"]),
    prefetch=int(os.environ["PREFETCH"]),
    serializer=_encode,
    deserializer=orjson.loads,
    anyio_kwargs={"use_uvloop": True},
)


@worker.task(name="sum", ttl=timedelta(days=1), silent=True)
async def add(x: int, y: int) -> dict[str, int]:
    return {"sum": x + y}
