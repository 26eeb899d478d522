"""Lists as they were. Candidates come from the read table, in its order, which never changes; what each of
them was then comes from its own events, by the one fold."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from typing import Final

from events.ids import DEFAULT_TENANT
from events.position import PositionToken
from events.task_state import TaskState
from events.vault import OFF, Vault
from query_side.consistency import Consistency
from query_side.cursor import CursorSigner, Place, Signers
from query_side.history import fold
from query_side.moments import AsOf, Moment, Moments
from query_side.read_model import ReadModel, Row, Snapshot, statement
from query_side.shapes import Json, recorded, task_of_state
from query_side.tasks import BEYOND, NEWEST_FIRST, PAGE_BYTES, Filters, Page

LOOKED_AT: Final = 5_000
"""Rows that one page may look at when it is the status then that is asked for."""
FOLDED: Final = 1_000
"""Tasks that one page may fold to find those."""
CHUNK: Final = 200
"""Tasks whose events are read at once."""

_CANDIDATES: Final = statement("candidates")
_STREAMS: Final = statement("streams")


class Past:
    def __init__(
        self,
        model: ReadModel,
        moments: Moments,
        consistency: Consistency,
        signers: Signers,
        vault: Vault = OFF,
    ) -> None:
        self._model = model
        self._moments = moments
        self._consistency = consistency
        self._signers = signers
        self._vault = vault

    async def page(
        self, filters: Filters, limit: int, when: AsOf, cursor: str | None
    ) -> tuple[Snapshot, Page]:
        """The page that the list had at the moment. A page is short, and has a cursor all the same, where
        its bounds are met before it is full. The cursor keeps the moment's position: later pages belong to
        the very same one. Raises what Moments.find() does, MalformedCursor, and ReadModelLagging."""
        moment = await self._moments.find(when)
        bound_to = {**filters.parameters(), "list": "tasks", "log": moment.tag, "as_of": _text(when)}
        signer = self._signers.of(moment.tag)
        after: Place | None = None
        if cursor is not None:
            after = signer.read(cursor, bound_to)
            moment = replace(moment, position=after.as_of or 0)
        found = await self._candidates(filters, limit, moment, after)
        tasks: list[Json] = []
        examined = 0
        async for _, state in self._states(found.possible, moment):
            examined += 1
            if state is not None and filters.status in (None, state.status):
                tasks.append(task_of_state(state, moment.tag))
                if len(tasks) == limit:
                    break
        return moment.snapshot, Page(tasks, found.next(examined, moment, signer, bound_to))

    async def _candidates(
        self, filters: Filters, limit: int, moment: Moment, after: Place | None
    ) -> "_Candidates":
        fixed = replace(filters, status=None)  # what a task has from its creation on
        conditions = [
            "t.tenant = %(tenant)s",
            "t.created_position <= %(position)s",
            "t.created_at <= %(time)s",  # as the index has it
            *fixed.conditions(),
        ]
        looked_at = limit + 1 if filters.status is None else LOOKED_AT
        parameters: Json = {
            **filters.parameters(),
            "tenant": DEFAULT_TENANT,
            "position": moment.position,
            "time": moment.time,
            "most_looked_at": looked_at,
            "most": FOLDED,
            "page_bytes": PAGE_BYTES,
        }
        if after is not None:
            conditions.append(BEYOND)
            parameters |= {"place_at": after.created_at, "place_position": after.created_position}
        sql = _CANDIDATES.format(
            conditions=" and ".join(conditions),
            possible="true" if filters.status is None else "t.status = %(status)s",
        )
        _, rows = await self._consistency.at(
            PositionToken(moment.position, moment.tag),
            lambda: self._model.fetch(sql, parameters, prepare=False, order=NEWEST_FIRST),
        )
        return _Candidates(rows, looked_at)

    async def _states(
        self, rows: Sequence[Row], moment: Moment
    ) -> AsyncIterator[tuple[Row, TaskState | None]]:
        """Each task as it was; None where all of it is parked."""
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            parameters = {"ids": [row["id"] for row in chunk], "position": moment.position}
            found = [recorded(row) for row in await self._model.read(_STREAMS, parameters)]
            decoder = await self._vault.decoder(found)
            streams = {key: list(events) for key, events in groupby(found, lambda e: e.originator_id)}
            for row in chunk:
                events = streams.get(row["id"])
                yield row, None if events is None else fold(decoder, events, moment.tag)


class _Candidates:
    def __init__(self, rows: Sequence[Row], most_looked_at: int) -> None:
        self.possible = [row for row in rows if row["possible"] and row["is_kept"]]
        self._last = rows[-1] if rows else None
        """Looked at."""
        self._possibles = int(rows[-1]["possibles"]) if rows else 0
        self._is_end = not rows or int(rows[-1]["looked_at"]) < most_looked_at

    def next(self, examined: int, moment: Moment, signer: CursorSigner, bound_to: Json) -> str | None:
        """Where the page after begins, if there may be one: after the last row that is dealt with."""
        all_examined = examined == self._possibles
        if all_examined and self._is_end:
            return None
        row = self._last if all_examined else self.possible[examined - 1]
        assert row is not None  # noqa: S101  without rows it is the end
        place = Place(row["created_at"], row["created_position"], moment.position)
        return signer.sign(place, bound_to)


def _text(when: AsOf) -> str:
    return when.isoformat() if isinstance(when, datetime) else str(when)
