"""The broker and its one actor; results go to Redis with a count of them."""

import os
from typing import Any

import dramatiq
import orjson
from dramatiq import Encoder
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries, ShutdownNotifications
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

COMPLETED = "completed"
DAY = 86_400_000


class OrjsonEncoder(Encoder):
    def encode(self, data: dict[str, Any]) -> bytes:
        return orjson.dumps(data)

    def decode(self, data: bytes) -> dict[str, Any]:
        return orjson.loads(data)


class CountingBackend(RedisBackend):
    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        with self.client.pipeline() as pipeline:
            pipeline.delete(message_key)
            pipeline.lpush(message_key, self.encoder.encode(result))
            pipeline.pexpire(message_key, ttl)
            pipeline.incr(COMPLETED)
            pipeline.execute()


dramatiq.set_encoder(OrjsonEncoder())
backend = CountingBackend(
    url=os.environ["REDIS_URL"], encoder=OrjsonEncoder(), use_namespace_prefix_keys=True
)
broker = RedisBroker(
    url=os.environ["REDIS_URL"],
    middleware=[
        ShutdownNotifications(),
        Retries(),
        Results(backend=backend, store_results=True, result_ttl=DAY),
    ],
)
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="sum")
def add(x: int, y: int) -> dict[str, int]:
    return {"sum": x + y}
