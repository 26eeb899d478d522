"""What those who use Redis ask of it."""

from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from events.errors import ConfigurationError
from taskledger.redis import GROUP


async def check_broker(redis: Redis) -> None:
    """Raises ConfigurationError if Redis may evict: that takes whole streams away while it runs.

    Also where no `maxmemory` is set yet: it would begin to evict on the day that somebody sets it.
    """
    memory: Any = await redis.info("memory")
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise ConfigurationError(
            f"Redis has maxmemory-policy {policy} and could evict the streams: set it to noeviction"
        )


async def has_group(redis: Redis, stream: str) -> bool:
    """Whether the workers' group exists on it. Needs no memory, other than creating it."""
    try:
        groups: Any = await redis.xinfo_groups(stream)
    except ResponseError as error:
        if str(error).startswith("no such key"):
            return False
        raise
    return any(group["name"] == GROUP for group in groups)
