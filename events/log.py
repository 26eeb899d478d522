"""The log as a port: append commands, read one task, read after a position."""

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from events.append import AppendCommand, Outcome, RecordedEvent


class LogReader(Protocol):
    """What followers and the query side may do. All reads see only committed events; positions
    become visible in order, so whoever has read position n has seen everything up to n."""

    async def read_stream(self, originator_id: UUID) -> list[RecordedEvent]:
        """One aggregate's events by rising version; empty if there is none."""
        ...

    async def read_streams(self, ids: Sequence[UUID]) -> dict[UUID, list[RecordedEvent]]:
        """Several aggregates' events in one query. Ids without events have no entry."""
        ...

    async def read_after(
        self, position: int, *, limit: int, upto: int | None = None
    ) -> list[RecordedEvent]:
        """At most `limit` events above `position` (and not above `upto`), by rising position."""
        ...

    async def head(self) -> int:
        """The highest position, 0 for an empty log."""
        ...

    async def tag(self) -> str:
        """Which log this is: see events.position."""
        ...


class Log(LogReader, Protocol):
    async def append(self, commands: Sequence[AppendCommand], *, deadline: float) -> list[Outcome]:
        """Stores each command wholly or not at all, durably, in one round trip; one outcome each.

        `deadline` is a time.monotonic() value. A connection lost on the way is an unknown outcome:
        it is resolved by appending the same events again and recognising our own by `event_uid`.
        Raises StoreUnavailable when the deadline passes first; the events may then be stored.
        No two commands of a call may touch the same stream or idempotency key.
        """
        ...
