"""Single entries that are gone from Redis although the position says that they were published.

That happens when a stream is deleted or trimmed by hand; a Redis that lost its data as a whole is the
relay's affair. Looks through everything queued for longer than a lease, oldest first within a queue, a
limited number a sweep, and begins again at the end.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis

from command_side.commands import ReplaceEntry
from command_side.dispatcher.outstanding import Row
from command_side.dispatcher.store import OutstandingStore
from events.errors import MalformedPosition
from events.position import PositionToken
from taskledger.redis import position_key, stream_key

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
            entry = f"{row.queued_position}-1"
            pipeline.xrange(stream_key(queue, row.kind, row.priority), entry, entry)
        answers: list[Any] = await pipeline.execute()
        stored, found = answers[0], answers[1:]
        published = self._position(stored)
        return [
            row
            for row, entries in zip(rows, found, strict=True)
            if not entries and row.queued_position <= published
        ]

    def _position(self, stored: str | None) -> int:
        try:
            token = PositionToken.parse(stored or "")
        except MalformedPosition:
            return 0
        return token.position if token.tag == self._tag else 0
