"""Creates many tasks with `save()` of many aggregates at once: python enqueue.py COUNT."""

import json
import os
import sys
import time

import tasks
from redis import Redis

BATCH = int(os.environ["ENQUEUE_BATCH"])


def main(count: int) -> None:
    application = tasks.Tasks(tasks.environment(1))
    with Redis.from_url(os.environ["REDIS_URL"]) as redis:
        began = time.perf_counter()
        for at in range(0, count, BATCH):
            requested = [tasks.Task(kind="sum", x=n, y=n) for n in range(at, min(at + BATCH, count))]
            application.save(*requested)
            with redis.pipeline(transaction=False) as pipeline:
                for task in requested:
                    pipeline.xadd(tasks.STREAM, {"id": task.id.bytes})
                pipeline.execute()
        print(json.dumps({"seconds": time.perf_counter() - began}))
    application.close()


main(int(sys.argv[1]))
