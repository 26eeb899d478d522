"""Leases of attempts that run outside our own workers; their holder is `<task>:<attempt>`.

Granted after TaskStarted is stored, because only then the attempt is known to exist. A crash between
the two leaves a running attempt without a lease, which the sweeper takes back after watching it for
one lease time, as it does with every lease that is not renewed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from command_side.api.database import fetch
from taskledger.postgres import Pool

_GRANT: Final = """
insert into taskledger.leases as l (holder, lease_seconds)
select h, %b::double precision from unnest(%b::text[]) as h
on conflict (holder) do update set
    counter = l.counter + 1, lease_seconds = excluded.lease_seconds, renewed_at = clock_timestamp()
returning clock_timestamp()
"""

# A row that is gone (leases do not survive a crash of the server) is made anew.
_RENEW: Final = """
insert into taskledger.leases as l (holder, counter, lease_seconds, progress, note)
values (%b::text, 1, %b::double precision, %b::double precision, %b::text)
on conflict (holder) do update set
    counter = l.counter + 1, renewed_at = clock_timestamp(),
    progress = coalesce(excluded.progress, l.progress), note = coalesce(excluded.note, l.note)
returning renewed_at, lease_seconds
"""


def holder_of(task_id: UUID, attempt: int) -> str:
    return f"{task_id}:{attempt}"


@dataclass(frozen=True, slots=True)
class Leases:
    """All methods raise StoreUnavailable and answer when the lease expires unless renewed."""

    pool: Pool
    default_seconds: float

    async def grant(self, holders: Sequence[str], seconds: float | None) -> datetime:
        length = self.default_seconds if seconds is None else seconds
        rows = await fetch(self.pool, _GRANT, (float(length), list(holders)))
        granted: datetime = min(row[0] for row in rows)
        return granted + timedelta(seconds=length)

    async def renew(self, holder: str, progress: float | None, note: str | None) -> datetime:
        """Keeps the length asked for at the start, and the last progress and note if none come."""
        value = None if progress is None else float(progress)
        rows = await fetch(self.pool, _RENEW, (holder, float(self.default_seconds), value, note))
        renewed_at: datetime = rows[0][0]
        return renewed_at + timedelta(seconds=rows[0][1])
