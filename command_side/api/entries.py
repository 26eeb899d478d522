"""Stream entries of external kinds: the command API as a member of the consumer group.

An entry read here is either dropped (its task has started, or never can) or kept spare for the next
claim. Spare entries stay in the group's pending list, so when this process dies others take them
over once they have been idle for a lease time. Whoever starts a task twice is refused by the log.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, cast
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import MaxConnectionsError, OutOfMemoryError, RedisError, ResponseError

from command_side.broker import has_group
from events.deadline import pauses
from events.errors import BrokerUnavailable, Overloaded
from events.ids import parse_task_id
from taskledger.redis import BLOCK_MS, GROUP, LANES, stream_key
from taskledger.telemetry import get_logger

_LOWEST_FIRST_EVERY: Final = 10
"""Reads: so that the lowest lane moves on however much comes in above it."""
_TRIES: Final = 4

_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    stream: str
    id: str
    task: UUID | None
    """None for an entry that names no task."""


class Entries:
    """All methods raise BrokerUnavailable when Redis does not answer, Overloaded when too many wait."""

    def __init__(self, redis: Redis, consumer: str, *, idle_seconds: float) -> None:
        self._redis = redis
        self._consumer = consumer
        self._idle_ms = int(idle_seconds * 1000)
        self._grouped: set[str] = set()
        self._spare: defaultdict[str, dict[str, Entry]] = defaultdict(dict)
        """By stream, then by entry id."""
        self._reclaimed_at: dict[str, float] = {}
        self._reads = 0

    async def take(self, queue: str, kinds: Sequence[str], limit: int) -> list[Entry]:
        """Up to `limit` entries, without waiting: spare ones, those of dead consumers, new ones."""
        lanes = self._lanes(queue, kinds)
        with _broker():
            await self._reclaim(lanes)
            taken = self._take_spare(lanes, limit)
            for lane in lanes:
                if len(taken) == limit:
                    break
                taken.extend(await self._read([lane], limit - len(taken)))
        return taken

    async def wait(self, queue: str, kinds: Sequence[str], seconds: float) -> None:
        """Returns when there may be something to take, after at most `seconds` (or BLOCK_MS). What the
        read brings along is spare."""
        with _broker():
            block = max(1, min(BLOCK_MS, int(seconds * 1000)))
            self.put_back(await self._read(self._lanes(queue, kinds), 1, block))

    def put_back(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._spare[entry.stream][entry.id] = entry

    async def drop(self, entries: Sequence[Entry]) -> None:
        """Deletes and acknowledges, in this order, as a worker does. A failure costs nothing but a later
        look at the same entries."""
        if not entries:
            return
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for entry in entries:
                    pipeline.xdel(entry.stream, entry.id)
                    pipeline.xack(entry.stream, GROUP, entry.id)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            _logger.warning("entries not dropped", count=len(entries), reason=type(error).__name__)

    async def ping(self) -> None:
        with _broker():
            await cast("Any", self._redis).ping()

    async def close(self) -> None:
        await self._redis.aclose()

    def _lanes(self, queue: str, kinds: Sequence[str]) -> list[str]:
        """Streams by priority; kinds take turns in being first."""
        self._reads += 1
        first = self._reads % len(kinds)
        turned = [*kinds[first:], *kinds[:first]]
        priorities = reversed(LANES) if self._reads % _LOWEST_FIRST_EVERY == 0 else LANES
        return [stream_key(queue, kind, priority) for priority in priorities for kind in turned]

    def _take_spare(self, lanes: Sequence[str], limit: int) -> list[Entry]:
        taken: list[Entry] = []
        for lane in lanes:
            spare = self._spare.get(lane)
            if spare:
                taken.extend(spare.pop(id_) for id_ in list(islice(spare, limit - len(taken))))
                if not spare:
                    del self._spare[lane]
        return taken

    async def _reclaim(self, lanes: Sequence[str]) -> None:
        """Takes over what others have left idle; each lane is looked at once in half a lease time."""
        now = time.monotonic()
        due = [lane for lane in lanes if now - self._reclaimed_at.get(lane, 0.0) > self._idle_ms / 2000]
        if not due:
            return
        self._reclaimed_at.update(dict.fromkeys(due, now))
        await self._group(due)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for lane in due:
                pipeline.xautoclaim(lane, GROUP, self._consumer, min_idle_time=self._idle_ms, count=10)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        for lane, answer in zip(due, answers, strict=True):
            if isinstance(answer, ResponseError) and _is_no_group(answer):
                self._grouped.discard(lane)  # the next read makes it anew
            elif isinstance(answer, Exception):
                raise answer
            else:
                self.put_back(_entries(lane, answer[1]))

    async def _read(self, lanes: Sequence[str], count: int, block: int | None = None) -> list[Entry]:
        streams: Any = dict.fromkeys(lanes, ">")
        for pause in islice(pauses(), _TRIES):
            await self._group(lanes)
            try:
                answer: Any = await self._redis.xreadgroup(
                    GROUP, self._consumer, streams, count=count, block=block
                )
            except ResponseError as error:
                if not _is_no_group(error):
                    raise
                self._grouped.difference_update(lanes)
                await asyncio.sleep(pause)
            else:
                return [entry for stream, found in answer or () for entry in _entries(stream, found)]
        raise BrokerUnavailable("Redis keeps losing the consumer group")

    async def _group(self, lanes: Sequence[str]) -> None:
        """From 0 and never from $: what was published before the group existed is work as well."""
        for lane in lanes:
            if lane not in self._grouped:
                try:
                    await self._redis.xgroup_create(lane, GROUP, id="0", mkstream=True)
                except OutOfMemoryError:
                    # A full Redis refuses whether there is one or not; only reading from it makes room.
                    if not await has_group(self._redis, lane):
                        raise
                except ResponseError as error:
                    if not str(error).startswith("BUSYGROUP"):
                        raise
                self._grouped.add(lane)


def _entries(stream: str, found: Sequence[tuple[str, dict[str, str] | None]]) -> list[Entry]:
    return [Entry(stream, id_, parse_task_id((fields or {}).get("task", ""))) for id_, fields in found]


def _is_no_group(error: ResponseError) -> bool:
    return str(error).startswith("NOGROUP")


@contextmanager
def _broker() -> Generator[None]:
    try:
        yield
    except MaxConnectionsError as error:
        raise Overloaded("too many claims are waiting") from error
    except (RedisError, OSError) as error:
        raise BrokerUnavailable("Redis does not answer") from error
