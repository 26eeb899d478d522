"""What days and tags cost: the second projection, see projector.usage."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from events.ids import DEFAULT_TENANT
from query_side.errors import InvalidQuery
from query_side.read_model import ReadModel, Row, Snapshot, statement
from query_side.shapes import Json

PROJECTION: Final = "usage"
DEFAULT_DAYS: Final = 30
MAX_DAYS: Final = 366
MAX_ROWS: Final = 10_000
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Period:
    """Days of UTC, both included."""

    first: date
    last: date


def period(first: date | None, last: date | None) -> Period:
    """Up to today, and 30 days of it, where nothing else is said. Raises InvalidQuery."""
    last = last or datetime.now(UTC).date()
    if first is None:
        first = last - min(timedelta(days=DEFAULT_DAYS - 1), last - date.min)
    if first > last:
        raise InvalidQuery("from", "Should not lie after `to`")
    if (last - first).days >= MAX_DAYS:
        raise InvalidQuery("from", f"Should lie less than {MAX_DAYS} days before `to`")
    return Period(first, last)


class Usage:
    """`model` reads this projection."""

    def __init__(self, model: ReadModel) -> None:
        self._model = model

    async def of(self, asked: Period, tag: str | None) -> tuple[Snapshot, list[Json]]:
        """By day, then tag. Raises InvalidQuery for more rows than an answer has, ProjectionNotKept."""
        parameters = {
            "tenant": DEFAULT_TENANT,
            "first": asked.first,
            "last": asked.last,
            "tag": tag,
            "limit": MAX_ROWS + 1,
        }
        snapshot, rows = await self._model.fetch(
            statement("usage"), parameters, order="order by found.day, found.tag"
        )
        if len(rows) > MAX_ROWS:
            raise InvalidQuery("from", f"The answer has more than {MAX_ROWS:,} rows: ask for fewer days")
        return snapshot, _shown(rows)


def _shown(rows: Sequence[Row]) -> list[Json]:
    return [
        {
            "day": row["day"],
            "tag": row["tag"] or None,
            "completed": row["completed"],
            "attempts": row["attempts"],
            "seconds": row["microseconds"] / _MICROSECONDS,
        }
        for row in rows
    ]
