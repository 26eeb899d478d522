"""Single entries that no worker will be given although the position says that they were published.

Gone: a stream was deleted or trimmed by hand; a Redis that lost its data as a whole is the relay's affair.
Or passed over: the group has handed the entry out, and nobody holds it any more, since the consumer was
removed with what it had, or somebody else acknowledged it. Looks through everything queued for longer
than a lease, oldest first within a queue, a limited number a sweep, and begins again at the end.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from command_side.commands import ReplaceEntry
from command_side.dispatcher.outstanding import Row
from command_side.dispatcher.store import OutstandingStore
from events.errors import MalformedPosition
from events.position import PositionToken
from taskledger.redis import GROUP, position_key, stream_key

CHECKED_A_SWEEP: Final = 1_000
CHECKED_AT_ONCE: Final = 250
"""Redis does nothing else while it answers for these."""

_START: Final = ("", 0)


class HoleFinder:
    def __init__(self, store: OutstandingStore, redis: Redis, tag: str, patience_seconds: float) -> None:
        self._store = store
        self._redis = redis
        self._tag = tag
        self._patience = timedelta(seconds=patience_seconds)
        self._cursor: tuple[str, int] = _START

    async def find(self, now: datetime) -> list[tuple[UUID, ReplaceEntry]]:
        """The next rows' holes. Raises RedisError.

        A worker may just have started the task and deleted the entry before our fold saw it. The command
        is therefore decided on a state loaded after this, which has TaskStarted if the entry was deleted
        for its sake, and names the position it is about.
        """
        rows = await self._store.queued_beyond(*self._cursor, CHECKED_A_SWEEP)
        full = len(rows) == CHECKED_A_SWEEP
        self._cursor = (rows[-1].queue, rows[-1].queued_position) if full else _START
        waiting = [
            row
            for row in rows
            if row.queued_at is not None and row.queued_at < now - self._patience and not row.unreadable
        ]
        holes: list[Row] = []
        for queue, group in groupby(waiting, key=lambda row: row.queue):
            members = list(group)
            for start in range(0, len(members), CHECKED_AT_ONCE):
                holes += await self._missing(queue, members[start : start + CHECKED_AT_ONCE])
        return [(row.task_id, ReplaceEntry(row.queued_position)) for row in holes]

    async def _missing(self, queue: str, rows: Sequence[Row]) -> list[Row]:
        """One transaction, so that position and streams belong together: what is above the position,
        or below none at all, is still to be published and no hole."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.get(position_key(queue))
        for row in rows:
            pipeline.xrange(_key(row), _entry(row), _entry(row))
        answers: list[Any] = await pipeline.execute()
        stored, found = answers[0], answers[1:]
        published = self._position(stored)
        there = [row for row, entries in zip(rows, found, strict=True) if entries]
        gone = [
            row
            for row, entries in zip(rows, found, strict=True)
            if not entries and row.queued_position <= published
        ]
        return gone + await self._passed_over(there)

    async def _passed_over(self, rows: Sequence[Row]) -> list[Row]:
        """First what the groups have handed out, and then who holds it: so an entry that is handed out
        in between is none of these. One that is settled in between has a task that is not queued."""
        keys = list(dict.fromkeys(_key(row) for row in rows))
        handed_out = dict(zip(keys, await self._handed_out(keys), strict=True))
        suspects = [row for row in rows if row.queued_position <= handed_out[_key(row)]]
        pipeline = self._redis.pipeline(transaction=False)
        for row in suspects:
            entry = _entry(row)
            pipeline.xpending_range(_key(row), GROUP, min=entry, max=entry, count=1)
        # An error is a group that was lost a moment ago: the entry will be handed out anew.
        answers: list[Any] = await pipeline.execute(raise_on_error=False) if suspects else []
        held = [bool(answer) or isinstance(answer, ResponseError) for answer in answers]
        nobodys = [row for row, is_held in zip(suspects, held, strict=True) if not is_held]
        for row in nobodys:
            await self._redis.xdel(_key(row), _entry(row))
        return nobodys

    async def _handed_out(self, keys: Sequence[str]) -> list[int]:
        """Of each stream, the position up to which its group has handed out entries; 0 without a group."""
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.xinfo_groups(key)
        answers: list[Any] = await pipeline.execute(raise_on_error=False) if keys else []
        return [0 if isinstance(answer, ResponseError) else _last_delivered(answer) for answer in answers]

    def _position(self, stored: str | None) -> int:
        try:
            token = PositionToken.parse(stored or "")
        except MalformedPosition:
            return 0
        return token.position if token.tag == self._tag else 0


def _key(row: Row) -> str:
    return stream_key(row.queue, row.kind, row.priority)


def _entry(row: Row) -> str:
    return f"{row.queued_position}-1"


def _last_delivered(groups: Sequence[dict[str, Any]]) -> int:
    ids = [str(group["last-delivered-id"]) for group in groups if group["name"] == GROUP]
    return int(ids[0].partition("-")[0]) if ids else 0
