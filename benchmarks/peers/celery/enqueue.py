"""Sends with one producer: python enqueue.py COUNT."""

import json
import sys
import time

from worker import add, celery

count = int(sys.argv[1])
with celery.producer_pool.acquire(block=True) as producer:
    began = time.perf_counter()
    for n in range(count):
        add.apply_async((n, n), producer=producer)
    print(json.dumps({"seconds": time.perf_counter() - began}))
