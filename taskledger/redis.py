"""How every process reaches Redis (or Valkey), and every key it uses.

Keys of a queue share the hash tag `{tl:<queue>}`, so that a cluster can spread queues. None has a
TTL: the stream entries live until a worker has appended TaskStarted, and the position for as long
as its streams do. Losing any or all of them costs latency, never a task.
"""

from collections.abc import Iterable
from typing import Any, Final

from redis.asyncio import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

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


class _Noticing(AbstractConnection):
    """Writing to a connection that was reset a moment ago raises ConnectionError, as it should.

    Not every CPython from 3.12 on does that: its writelines() may raise AttributeError instead
    (python/cpython#136234), which would end a process that is ready for every error of a network.
    """

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        if self._writer is not None and self._writer.is_closing():
            await self.disconnect(nowait=True)
            raise RedisConnectionError("the connection was lost")
        await super().send_packed_command(command, check_health)


class _Tcp(_Noticing, Connection):
    pass


class _Tls(_Noticing, SSLConnection):
    pass


class _Unix(_Noticing, UnixDomainSocketConnection):
    pass


_OURS: Final[dict[Any, type[_Noticing]]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


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
    pool: Any = client.connection_pool
    pool.connection_class = _OURS[pool.connection_class]
    return client
