"""The dispatcher's tables in PostgreSQL: `outstanding` with its checkpoint, and reads of `leases`.

Every call has one deadline and raises StoreUnavailable when the database does not answer in time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from command_side.dispatcher import statements
from command_side.dispatcher.leases import Beat
from command_side.dispatcher.outstanding import Changes, Row
from command_side.store import FollowerStore
from events.errors import CheckpointConflict

_COLUMNS: Final = Row._fields
_FIRST_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
_FIRST_ID: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Identity:
    """Where the log and our fold of it stand."""

    tag: str
    folded_tag: str | None
    """The log that the table was folded from; None before the first start."""
    checkpoint: int
    head: int


@dataclass(frozen=True, slots=True)
class Held:
    task_id: UUID
    attempt: int
    beside_others: bool
    """Whether its holder runs anything that is not in a child of its own."""


@dataclass(frozen=True, slots=True)
class Overdue:
    task_id: UUID
    attempt: int
    timeout_seconds: float


class OutstandingStore(FollowerStore):
    async def identity(self) -> Identity:
        return (await self._read(statements.IDENTITY, (), Identity))[0]

    async def clock(self) -> datetime:
        row = (await self._fetch(statements.CLOCK, ()))[0]
        now: datetime = row[0]
        return now

    async def restart(self) -> None:
        """Empties the table and sets its checkpoint to 0, under the tag that the log has now."""

        async def work(connection: AsyncConnection[TupleRow]) -> None:
            async with connection.transaction():
                for statement in statements.RESTART:
                    await connection.execute(statement.encode())

        await self._with_connection(work)

    async def rows(self, ids: Sequence[UUID], checkpoint: int) -> dict[UUID, Row]:
        """As the table has them at `checkpoint`; CheckpointConflict when it is elsewhere by now."""
        found = await self._fetch(statements.ROWS, (list(ids),)) if ids else []
        if found and found[0][0] != checkpoint:
            raise CheckpointConflict(f"the checkpoint of outstanding is no longer {checkpoint}")
        return {row[1]: Row(*row[1:]) for row in found if row[1] is not None}

    async def commit(self, before: int, to: int, changes: Changes) -> None:
        """The changes and the checkpoint together, or nothing and CheckpointConflict when the checkpoint
        is not at `before`: another dispatcher leads now. StoreUnavailable leaves open which of the two."""
        columns = {name: [getattr(row, name) for row in changes.put] for name in _COLUMNS}
        parameters = {"from": before, "to": to, "gone": changes.gone, **columns}
        moved = (await self._fetch(statements.COMMIT, parameters))[0][0]
        if moved != 1:
            raise CheckpointConflict(f"the checkpoint of outstanding is no longer {before}")

    async def unreadable(self, beyond: UUID | None, limit: int) -> list[UUID]:
        rows = await self._fetch(statements.UNREADABLE, (beyond or _FIRST_ID, limit))
        return [row[0] for row in rows]

    async def queued_queues(self) -> list[str]:
        """Names of the queues in which something is queued."""
        return [row[0] for row in await self._fetch(statements.QUEUED_QUEUES, ())]

    async def queued_after(self, queue: str, position: int, limit: int) -> list[Row]:
        return await self._read(statements.QUEUED_AFTER, (queue, position, limit), Row)

    async def queued_beyond(self, queue: str, position: int, limit: int) -> list[Row]:
        """As queued_after(), and going on with the queues that follow by name."""
        return await self._read(statements.LONG_QUEUED, (queue, position, limit), Row)

    async def due(self, beyond: tuple[datetime, UUID] | None, limit: int) -> list[tuple[datetime, UUID]]:
        """Tasks whose time has come by the database's clock, longest due first."""
        at, task = beyond or (_FIRST_TIME, _FIRST_ID)
        return [(row[0], row[1]) for row in await self._fetch(statements.DUE, (at, task, limit))]

    async def overdue(self, grace_seconds: float, limit: int) -> list[Overdue]:
        return await self._read(statements.OVERDUE, (grace_seconds, limit), Overdue)

    async def holders(self) -> dict[str, Beat | None]:
        """Who holds a running attempt, with its lease; None where there is no such lease."""
        rows = await self._fetch(statements.HOLDERS, ())
        return {row[0]: None if row[1] is None else Beat(row[1], row[2]) for row in rows}

    async def held_by(self, holders: Sequence[str], limit: int) -> list[Held]:
        """Running attempts of these holders."""
        return await self._read(statements.HELD, (list(holders), limit), Held)

    async def purge(self, limit: int) -> int:
        """Deletes at most `limit` idempotency keys older than 30 days and as many forgotten leases;
        returns how many of the more numerous."""

        async def work(connection: AsyncConnection[TupleRow]) -> int:
            counts = [
                (await connection.execute(statement.encode(), (limit,))).rowcount
                for statement in statements.PURGE
            ]
            return max(counts)

        return await self._with_connection(work)
