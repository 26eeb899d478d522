"""One task, now or as soon as it is settled; and pages of tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID

from events.deadline import after
from events.errors import ReadModelLagging
from events.ids import DEFAULT_TENANT
from events.position import PositionToken
from events.task_state import SETTLED
from events.vault import OFF, Vault
from query_side.consistency import Consistency
from query_side.cursor import Place, Signers
from query_side.errors import TaskNotFound
from query_side.opening import open_rows
from query_side.read_model import ReadModel, Row, Snapshot, statement
from query_side.shapes import Json, task_of_row
from query_side.watch import ReadWatch

PAGE_BYTES: Final = 8 * 1024 * 1024
"""Of payload and result. A page of 200 tasks of 2 MiB each would need more memory than it is worth."""

_COLUMNS: Final = statement("columns")
TASK: Final = statement("task").format(columns=_COLUMNS)
"""Reads every column that an answer shows."""
_TASKS: Final = statement("tasks")
_OWN: Final = "t.tenant = %(tenant)s"
BEYOND: Final = "(t.created_at, t.created_position) < (%(place_at)s, %(place_position)s::bigint)"
"""After the cursor's place."""
NEWEST_FIRST: Final = "order by found.created_at desc, found.created_position desc"


@dataclass(frozen=True, slots=True)
class Filters:
    """All must hold. `created_after` is inclusive, `created_before` exclusive."""

    status: str | None = None
    kind: str | None = None
    queue: str | None = None
    tags: Sequence[str] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None

    def conditions(self) -> list[str]:
        """SQL, with a parameter for each filter that is set."""
        texts = {
            "status": "t.status = %(status)s",
            "kind": "t.kind = %(kind)s",
            "queue": "t.queue = %(queue)s",
            "tags": "t.tags @> %(tags)s::text[]",
            "created_after": "t.created_at >= %(created_after)s",
            "created_before": "t.created_at < %(created_before)s",
        }
        return [texts[name] for name in self.parameters()]

    def parameters(self) -> Json:
        values: Json = {
            "status": self.status,
            "kind": self.kind,
            "queue": self.queue,
            "tags": sorted(set(self.tags)) or None,
            "created_after": self.created_after,
            "created_before": self.created_before,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Page:
    tasks: list[Json]
    next_cursor: str | None


class Tasks:
    def __init__(
        self,
        model: ReadModel,
        watch: ReadWatch,
        consistency: Consistency,
        signers: Signers,
        vault: Vault = OFF,
    ) -> None:
        self._model = model
        self._vault = vault
        self._watch = watch
        self._consistency = consistency
        self._signers = signers

    async def get(
        self, task_id: UUID, *, min_position: PositionToken | None = None, wait_seconds: float = 0.0
    ) -> tuple[Snapshot, Json]:
        """The task as of a checkpoint that is not below `min_position`; with `wait_seconds`, as soon as
        it is settled or when they have passed.

        Raises TaskNotFound only once the checkpoint has passed `min_position`; LogRewound for another
        log's position; ReadModelLagging when the projector does not get there in time, or has passed over
        an event of the task on the way there, because it is parked.
        """
        asked = 0 if min_position is None else min_position.position
        deadline = after(wait_seconds)
        # Whoever waits for the end needs no row before that.
        snapshot, row = await self._consistency.at(
            min_position, partial(self._read, task_id), hurry=wait_seconds == 0
        )
        _refuse_parked(snapshot, row, asked)
        while row is not None and row["status"] not in SETTLED and self._consistency.may_wait(deadline):
            found = await self._watch.settled(task_id, seen=snapshot.checkpoint, deadline=deadline)
            snapshot, row = found or await self._read(task_id)
            _refuse_parked(snapshot, row, asked)
        if row is None:
            raise TaskNotFound
        await open_rows(self._vault, [row])
        return snapshot, task_of_row(row, snapshot.tag)

    async def page(
        self,
        name: str,
        filters: Filters,
        limit: int,
        cursor: str | None,
        min_position: PositionToken | None = None,
    ) -> tuple[Snapshot, Page]:
        """`name` is the list's own, so that one list's cursor is of no use with another. Raises
        MalformedCursor, and as Consistency.at()."""
        bound_to = {"list": name, **filters.parameters()}
        conditions = [_OWN, *filters.conditions()]
        parameters: Json = {
            **filters.parameters(),
            "tenant": DEFAULT_TENANT,
            "limit": limit + 1,
            "page_bytes": PAGE_BYTES,
        }
        if cursor is not None:
            snapshot, _ = await self._model.fetch("select true as present")
            place = self._signers.of(snapshot.tag).read(cursor, bound_to)
            conditions.append(BEYOND)
            parameters |= {"place_at": place.created_at, "place_position": place.created_position}
        sql = _TASKS.format(columns=_COLUMNS, conditions=" and ".join(conditions))
        # Not prepared: a plan for any status would be a bad one for most.
        fetch = partial(self._model.fetch, sql, parameters, prepare=False, order=NEWEST_FIRST)
        snapshot, rows = await self._consistency.at(min_position, fetch)
        shown = rows[:limit]
        next_cursor = None
        if shown and shown[0]["matched"] > len(shown):
            last = Place(shown[-1]["created_at"], shown[-1]["created_position"])
            next_cursor = self._signers.of(snapshot.tag).sign(last, bound_to)
        await open_rows(self._vault, shown)
        return snapshot, Page([task_of_row(row, snapshot.tag) for row in shown], next_cursor)

    async def _read(self, task_id: UUID) -> tuple[Snapshot, Row | None]:
        snapshot, rows = await self._model.fetch(TASK, {"id": task_id, "tenant": DEFAULT_TENANT})
        return snapshot, rows[0] if rows else None


def _refuse_parked(snapshot: Snapshot, row: Row | None, asked: int) -> None:
    """From a parked event on a task stays as it was before it. That may be shown to whoever asks for no
    position, but not as the state at a later one; and a task whose creation is parked is not unknown."""
    parked = None if row is None else row["parked_position"]
    if row is not None and parked is not None and (row["id"] is None or asked >= parked):
        raise ReadModelLagging(
            f"the task's event at {snapshot.token_of(parked)} is parked: an operator has to apply it first"
        )
