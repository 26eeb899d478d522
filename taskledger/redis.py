"""How every process reaches Redis (or Valkey), and every key it uses.

Keys of a queue share the hash tag `{tl:<queue>}`, so that a cluster can spread queues. None has a
TTL: the stream entries live until a worker has appended TaskStarted, and the position for as long
as its streams do. Losing any or all of them costs latency, never a task.
"""

from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from events.task_events import Priority

GROUP: Final = "workers"
LANES: Final[tuple[Priority, ...]] = ("high", "normal", "low")
BLOCK_MS: Final = 2_000
"""Shorter than the socket timeout: a blocking read that outlives it is taken for a lost server."""
SOCKET_TIMEOUT_SECONDS: Final = 5.0


def stream_key(queue: str, kind: str, priority: str) -> str:
    return f"{{tl:{queue}}}:{kind}:{priority}"


def position_key(queue: str) -> str:
    """Holds `<position>.<log tag>` of the last event published to the queue's streams."""
    return f"{{tl:{queue}}}:position"


def streams_key(queue: str) -> str:
    """The set of the queue's stream keys: what there is to delete when its streams must begin anew."""
    return f"{{tl:{queue}}}:streams"


def make_redis(url: str, *, name: str) -> Redis:
    """Without retries: a repeated write whose first reply was lost would be a second write."""
    client: Redis = Redis.from_url(
        url,
        client_name=f"taskledger-{name}",
        decode_responses=True,
        # A foreign entry that is not UTF-8 must be readable enough to be thrown away.
        encoding_errors="replace",
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    return client
