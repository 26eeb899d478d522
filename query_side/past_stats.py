"""Statistics as they were: from the nearest kept counts, by what the log changes between there and then."""

from collections import Counter
from typing import Final

from events.codec import EventMapper
from events.counting import CHANGES, Counts, back, changes, counts_of, forward
from events.errors import UndecodableEvent, UnknownEvent
from events.ids import DEFAULT_TENANT
from events.position import PositionToken
from query_side.consistency import Consistency
from query_side.errors import AsOfOutOfReach
from query_side.moments import AsOf, Moment, Moments
from query_side.overview import stats_json
from query_side.read_model import ReadModel, Row, Snapshot, statement
from query_side.shapes import Json

MOST_EVENTS: Final = 50_000
"""Between a position and the nearest kept counts; the projector keeps some every 10,000 events. What they
change is found in about 10 microseconds each."""


class PastStats:
    def __init__(self, model: ReadModel, moments: Moments, consistency: Consistency) -> None:
        self._model = model
        self._moments = moments
        self._consistency = consistency
        self._mapper = EventMapper()

    async def at(self, when: AsOf) -> tuple[Snapshot, Json]:
        """As Overview.stats() gave it then, but that nothing was behind. Raises what Moments.find() does,
        and AsOfOutOfReach where no counts are kept near enough."""
        moment = await self._moments.find(when)
        token = PositionToken(moment.position, moment.tag)
        _, points = await self._consistency.at(
            token, lambda: self._model.fetch(statement("kept_counts"), {"position": moment.position})
        )
        counts = await self._counts(moment, points)
        _, windows = await self._model.fetch(
            statement("activity"), {"time": moment.time}, order="order by found.minutes"
        )
        rows: list[Row] = [
            {"queue": queue, "kind": kind, "status": status, "tasks": tasks}
            for (tenant, queue, kind, status), tasks in counts.items()
            if tenant == DEFAULT_TENANT
        ]
        return moment.snapshot, stats_json(rows, windows, moment.snapshot, head=moment.position)

    async def _counts(self, moment: Moment, points: list[Row]) -> Counts:
        """At position 0 there were none, without asking."""
        near: tuple[int, Counts] = (0, Counter())
        for row in points:
            position = int(row["position"])
            if abs(position - moment.position) < abs(near[0] - moment.position):
                near = (position, counts_of(row["counts"]))
        position, counts = near
        low, high = sorted((position, moment.position))
        if high - low > MOST_EVENTS:
            raise AsOfOutOfReach(
                f"no counts are kept within {MOST_EVENTS} events of it yet: the projector adds them"
            )
        if low == high:
            return counts
        rows = await self._model.read(CHANGES, {"low": low, "high": high})
        try:
            differences = changes(rows, self._mapper)
        except (UnknownEvent, UndecodableEvent) as error:
            raise AsOfOutOfReach("this release cannot apply an event on the way there") from error
        return forward(counts, differences) if position == low else back(counts, differences)
