"""This process's place in the consumer group: reads, claims, acknowledges. Knows Redis, not the log."""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from command_side.broker import has_group
from command_side.worker.streams import Entry, Lanes, Stream, entry_of, streams_of
from taskledger.redis import BLOCK_MS, GROUP
from taskledger.telemetry import get_logger

_logger = get_logger(__name__)

QUIET_SECONDS: Final = 0.01
"""A stream that was just found empty is not asked again for so long while others give enough to do: of a
worker's streams, one for each kind and priority, most are empty most of the time."""
MAX_CLAIMED: Final = 100
"""Entries a sweep takes over from one stream."""
FORGET_AFTER_MS: Final = 600_000
"""A consumer with nothing pending that has not been seen for so long belongs to a dead process."""
FORGET_EVERY_SECONDS: Final = 300.0


class Consumer:
    """Every method raises redis.exceptions.RedisError when Redis is away, or has lost the group."""

    def __init__(
        self, redis: Redis, name: str, queues: Collection[str], kinds: Collection[str], lease_seconds: float
    ) -> None:
        self._redis = redis
        self._name = name
        self._streams = {s.key: s for s in streams_of(queues, kinds)}
        self._joined: dict[str, Stream] = {}
        """Those that have the group: all but for a time in which Redis was full."""
        self._lanes = Lanes(list(self._streams.values()))
        self._quiet_until = dict.fromkeys(self._streams, 0.0)
        self._idle_ms = int(lease_seconds * 1000)
        self._claim_every = lease_seconds / 2
        self._block_ms = min(BLOCK_MS, int(self._claim_every * 1000))
        self._claim_at = 0.0
        self._forget_at = time.monotonic() + FORGET_EVERY_SECONDS

    async def join(self) -> list[Entry]:
        """Makes sure of streams and groups; returns what this consumer was given and has not settled."""
        await self._make_groups()
        return await self._read(self._joined.values(), count=None, start="0")

    async def read(self, free: int, paused: Collection[str]) -> list[Entry]:
        """At most `free` entries that nobody has had, in the order of their lanes. Does not block."""
        taken: list[Entry] = []
        now = time.monotonic()
        for lane in self._lanes.next(paused):
            if len(taken) >= free:
                break
            asked = [s for s in lane if s.key in self._joined and self._quiet_until[s.key] <= now]
            taken += await self._read_lane(asked, free - len(taken))
        return taken

    async def wait(self, free: int, paused: Collection[str]) -> list[Entry]:
        """Blocks until there is something, for up to two seconds. At most `free` entries, or one of each
        stream if there are more streams than that."""
        streams = [s for s in self._joined.values() if s.queue not in paused]
        if streams:
            count = max(1, free // len(streams))
            return await self._read(streams, count=count, block=self._block_ms)
        await asyncio.sleep(self._block_ms / 1000)
        return []

    async def claim(self, free: int, paused: Collection[str]) -> list[Entry]:
        """When it is time, takes over entries that others have held for a lease without starting them."""
        if time.monotonic() < self._claim_at or free <= 0:
            return []
        if len(self._joined) < len(self._streams):
            await self._make_groups()
        claimed: list[Entry] = []
        for stream in self._joined.values():
            if stream.queue in paused:
                continue
            if len(claimed) >= free:
                return claimed  # and go on at the next call
            count = min(free - len(claimed), MAX_CLAIMED)
            answer: Any = await self._redis.xautoclaim(
                stream.key, GROUP, self._name, min_idle_time=self._idle_ms, start_id="0", count=count
            )
            claimed += [entry_of(stream, entry_id, fields) for entry_id, fields in answer[1]]
        self._claim_at = time.monotonic() + self._claim_every
        return claimed

    async def settle(self, entries: Sequence[Entry]) -> None:
        """Deletes and acknowledges: acknowledging alone would let the streams grow for ever. In this
        order, since a pending entry without its content is found and dropped by the next look, and one
        that is only acknowledged would be found by nobody."""
        if not entries:
            return
        ids: dict[str, list[str]] = {}
        for entry in entries:
            ids.setdefault(entry.stream.key, []).append(entry.id)
        async with self._redis.pipeline(transaction=False) as pipe:
            for key, of_stream in ids.items():
                pipe.xdel(key, *of_stream)
                pipe.xack(key, GROUP, *of_stream)
            await pipe.execute()

    async def forget_dead(self) -> None:
        """Now and then removes consumers that processes left behind: only with nothing pending, since
        removing a consumer throws its pending entries away."""
        if time.monotonic() < self._forget_at:
            return
        self._forget_at = time.monotonic() + FORGET_EVERY_SECONDS
        for key in self._joined:
            for consumer in await self._redis.xinfo_consumers(key, GROUP):
                if not consumer["pending"] and consumer["idle"] > FORGET_AFTER_MS:
                    await self._redis.xgroup_delconsumer(key, GROUP, consumer["name"])

    async def leave(self) -> None:
        """At shutdown. What is still pending is given up at once, for others to claim."""
        for key in self._joined:
            pending: Any = await self._redis.xpending_range(
                key, GROUP, min="-", max="+", count=1000, consumername=self._name
            )
            if pending:
                ids = [row["message_id"] for row in pending]
                await self._redis.xclaim(
                    key, GROUP, self._name, 0, ids, idle=10 * self._idle_ms, justid=True
                )
            else:
                await self._redis.xgroup_delconsumer(key, GROUP, self._name)

    async def _make_groups(self) -> None:
        """From 0 and not from the end: what was published before the group existed is work too.

        A Redis that is full makes no group, and does not tell whether there is one: then we read from
        those that exist, since only that makes room, and ask again for the others.
        """
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in self._streams:
                pipe.xgroup_create(key, GROUP, id="0", mkstream=True)
            answers: list[Any] = await pipe.execute(raise_on_error=False)
        full: OutOfMemoryError | None = None
        self._joined = {}
        for stream, answer in zip(self._streams.values(), answers, strict=True):
            if isinstance(answer, OutOfMemoryError):
                full = answer
                if not await has_group(self._redis, stream.key):
                    continue
            elif isinstance(answer, Exception) and not str(answer).startswith("BUSYGROUP"):
                raise answer
            self._joined[stream.key] = stream
        if full is not None and not self._joined:
            raise full

    async def _read_lane(self, lane: list[Stream], free: int) -> list[Entry]:
        """COUNT is for each stream, so each gets a share of the slots; what the quiet ones leave goes
        to those that had as much as they were asked for."""
        taken: list[Entry] = []
        while lane and free > len(taken):
            left = free - len(taken)
            asked, lane = lane[:left], lane[left:]
            share = left // len(asked)
            found = await self._read(asked, count=share)
            taken += found
            given = Counter(e.stream.key for e in found)
            self._note_quiet(asked, given)
            lane += [s for s in asked if given[s.key] >= share]
        return taken

    def _note_quiet(self, asked: Sequence[Stream], given: Mapping[str, int]) -> None:
        until = time.monotonic() + QUIET_SECONDS
        for stream in asked:
            if not given.get(stream.key):
                self._quiet_until[stream.key] = until

    async def _read(
        self,
        streams: Iterable[Stream],
        *,
        count: int | None,
        start: str = ">",
        block: int | None = None,
    ) -> list[Entry]:
        answer: Any = await self._redis.xreadgroup(
            GROUP, self._name, {s.key: start for s in streams}, count=count, block=block
        )
        # A list of pairs from RESP2, a dict from RESP3.
        by_stream: dict[str, Any] = dict(answer or ())
        for key in by_stream:
            self._quiet_until[key] = 0.0
        return [
            entry_of(self._streams[key], entry_id, fields)
            for key, entries in by_stream.items()
            for entry_id, fields in entries
        ]


def is_group_lost(error: Exception) -> bool:
    """Redis was emptied: streams, if there are any, have no group."""
    return isinstance(error, ResponseError) and str(error).startswith("NOGROUP")
