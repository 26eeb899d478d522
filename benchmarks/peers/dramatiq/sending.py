"""Messages into a pipeline of an asynchronous client: the broker sends one at a time, and blocks."""

from uuid import uuid4

from dramatiq import Message
from redis.asyncio.client import Pipeline
from worker import broker


def push(pipeline: Pipeline, message: Message) -> None:
    """Writes what the broker's own `enqueue` writes."""
    key = str(uuid4())
    queue = f"{broker.namespace}:{message.queue_name}"
    pipeline.hset(f"{queue}.msgs", key, message.copy(options={"redis_message_id": key}).encode())
    pipeline.rpush(queue, key)
