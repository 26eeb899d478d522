"""One task, now or as soon as it is settled; and pages of tasks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from events.deadline import after, remaining
from events.errors import ReadModelLagging
from events.ids import DEFAULT_TENANT
from events.position import PositionToken
from events.task_state import SETTLED
from query_side.cursor import CursorSigner, Place
from query_side.errors import TaskNotFound
from query_side.read_model import ReadModel, Row, Snapshot, statement
from query_side.shapes import Json, task_of_row
from query_side.watch import ReadWatch

POSITION_BUDGET_SECONDS: Final = 5.0
"""How long a read waits for the projector to reach its `min_position`."""
PAGE_BYTES: Final = 8 * 1024 * 1024
"""Of payload and result. A page of 200 tasks of 2 MiB each would need more memory than it is worth."""

_COLUMNS: Final = statement("columns")
_TASK: Final = statement("task").format(columns=_COLUMNS)
_TASKS: Final = statement("tasks")
_OWN: Final = "t.tenant = %(tenant)s"
_NEWEST_FIRST: Final = "order by found.created_at desc, found.created_position desc"


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
    """`secret` signs cursors; without one it derives from the log's tag."""

    def __init__(
        self,
        model: ReadModel,
        watch: ReadWatch,
        secret: bytes | None,
        *,
        position_budget_seconds: float = POSITION_BUDGET_SECONDS,
    ) -> None:
        self._model = model
        self._watch = watch
        self._secret = secret
        self._position_budget = position_budget_seconds
        self._tag: str | None = None
        """Of the log, as last read."""

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
        if min_position is None:
            snapshot, row = await self._read(task_id)
        else:
            # Whoever waits for the end needs no row before that.
            snapshot, row = await self._read_at(task_id, min_position, hurry=wait_seconds == 0)
        _refuse_parked(snapshot, row, asked)
        deadline = after(wait_seconds)
        while row is not None and row["status"] not in SETTLED and self._may_wait(deadline):
            await self._watch.settled(task_id, seen=snapshot.checkpoint, deadline=deadline)
            snapshot, row = await self._read(task_id)
            _refuse_parked(snapshot, row, asked)
        if row is None:
            raise TaskNotFound
        return snapshot, task_of_row(row, snapshot.tag)

    async def page(
        self, name: str, filters: Filters, limit: int, cursor: str | None
    ) -> tuple[Snapshot, Page]:
        """`name` is the list's own, so that one list's cursor is of no use with another. Raises
        MalformedCursor."""
        bound_to = {"list": name, **filters.parameters()}
        conditions = [_OWN, *filters.conditions()]
        parameters: Json = {
            **filters.parameters(),
            "tenant": DEFAULT_TENANT,
            "limit": limit + 1,
            "page_bytes": PAGE_BYTES,
        }
        if cursor is not None:
            place = (await self._signer()).read(cursor, bound_to)
            conditions.append(
                "(t.created_at, t.created_position) < (%(place_at)s, %(place_position)s::bigint)"
            )
            parameters |= {"place_at": place.created_at, "place_position": place.created_position}
        sql = _TASKS.format(columns=_COLUMNS, conditions=" and ".join(conditions))
        # Not prepared: a plan for any status would be a bad one for most.
        snapshot, rows = await self._model.fetch(sql, parameters, prepare=False, order=_NEWEST_FIRST)
        shown = rows[:limit]
        next_cursor = None
        if shown and shown[0]["matched"] > len(shown):
            last = Place(shown[-1]["created_at"], shown[-1]["created_position"])
            next_cursor = self._signer_of(snapshot.tag).sign(last, bound_to)
        return snapshot, Page([task_of_row(row, snapshot.tag) for row in shown], next_cursor)

    async def _read(self, task_id: UUID) -> tuple[Snapshot, Row | None]:
        snapshot, rows = await self._model.fetch(_TASK, {"id": task_id, "tenant": DEFAULT_TENANT})
        self._tag = snapshot.tag
        return snapshot, rows[0] if rows else None

    async def _read_at(
        self, task_id: UUID, token: PositionToken, *, hurry: bool
    ) -> tuple[Snapshot, Row | None]:
        """Waits as well for a projector that has not made its tables yet."""
        deadline = after(self._position_budget)
        if token.tag == self._tag and token.position > (seen := self._watch.seen):
            # Most likely not there yet: one read less.
            await self._watch.reached(token.position, seen=seen, deadline=deadline, hurry=hurry)
        while True:
            seen = 0
            try:
                snapshot, row = await self._read(task_id)
            except ReadModelLagging:
                if not self._may_wait(deadline):
                    raise
            else:
                if snapshot.checkpoint >= token.of_log(snapshot.tag):
                    return snapshot, row
                if not self._may_wait(deadline):
                    raise ReadModelLagging("the read table has not reached the position yet")
                seen = snapshot.checkpoint
            await self._watch.reached(token.position, seen=seen, deadline=deadline, hurry=hurry)

    def _may_wait(self, deadline: float) -> bool:
        return remaining(deadline) > 0 and not self._watch.closed

    async def _signer(self) -> CursorSigner:
        if self._secret is not None:
            return CursorSigner(self._secret)
        snapshot, _ = await self._model.fetch("select true as present")
        return self._signer_of(snapshot.tag)

    def _signer_of(self, tag: str) -> CursorSigner:
        derived = hashlib.sha256(f"taskledger cursor of log {tag}".encode()).digest()
        return CursorSigner(self._secret or derived)


def _refuse_parked(snapshot: Snapshot, row: Row | None, asked: int) -> None:
    """From a parked event on a task stays as it was before it. That may be shown to whoever asks for no
    position, but not as the state at a later one; and a task whose creation is parked is not unknown."""
    parked = None if row is None else row["parked_position"]
    if row is not None and parked is not None and (row["id"] is None or asked >= parked):
        raise ReadModelLagging(
            f"the task's event at {snapshot.token_of(parked)} is parked: an operator has to apply it first"
        )
