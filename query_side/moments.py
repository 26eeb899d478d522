"""When in the past: a time or a position token -> a position of this log."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg

from events.deadline import after, remaining
from events.errors import ReadModelLagging, SchemaNotReady
from events.position import PositionToken
from query_side.errors import AsOfOutOfReach, InvalidQuery
from query_side.read_model import ReadModel, Row, Snapshot, statement
from query_side.watch import ReadWatch

BUDGET_SECONDS: Final = 5.0
"""How long a position that the log has not reached yet is waited for."""
_LOOK_SECONDS: Final = 1.0
"""The watch wakes for the projector, which may stand: the log itself is looked at this often."""

AsOf = datetime | PositionToken


@dataclass(frozen=True, slots=True)
class Moment:
    """All events up to `position` had happened, and no other."""

    position: int
    tag: str
    time: datetime
    """The one asked for, or when the event at the position was recorded."""

    @property
    def snapshot(self) -> Snapshot:
        """What an answer about the moment belongs to."""
        return Snapshot(self.position, self.tag)


class Moments:
    def __init__(
        self, model: ReadModel, watch: ReadWatch, *, budget_seconds: float = BUDGET_SECONDS
    ) -> None:
        self._model = model
        self._watch = watch
        self._budget = budget_seconds

    async def find(self, when: AsOf) -> Moment:
        """A time becomes the position of the last event at or before it. An event that is being appended
        while it is asked for may still get an earlier time: who wants the very same answer again asks
        with the position.

        Raises InvalidQuery for a time that has not come, AsOfOutOfReach for one before the log began,
        LogRewound for another log's position, ReadModelLagging for one that the log does not reach in time.
        """
        deadline = after(self._budget)
        while True:
            row = await self._look(when)
            moment = Moment(int(row["position"]), str(row["tag"]), row["time"])
            if isinstance(when, datetime):
                _refuse_outside(when, row)
                return moment
            if when.of_log(moment.tag) <= int(row["head"]):
                return moment
            if remaining(deadline) <= 0 or self._watch.closed:
                raise ReadModelLagging("the log has not reached the position yet")
            soon = min(deadline, after(_LOOK_SECONDS))
            await self._watch.reached(when.position, seen=int(row["head"]), deadline=soon)

    async def _look(self, when: AsOf) -> Row:
        asked = when if isinstance(when, datetime) else None
        position = when.position if isinstance(when, PositionToken) else None
        try:
            rows = await self._model.read(statement("moment"), {"time": asked, "position": position})
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise SchemaNotReady("the database has not been migrated: run `taskledger migrate`") from error
        return rows[0]


def _refuse_outside(when: datetime, row: Row) -> None:
    if when > row["now"]:
        raise InvalidQuery("as_of", "The time has not come yet")
    if when < row["began"]:
        raise AsOfOutOfReach(f"the log began later, at {row['began']:%Y-%m-%dT%H:%M:%S.%fZ}")
