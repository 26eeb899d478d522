"""Reads of the projection: generation, checkpoint and data always from one snapshot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import PoolTimeout, TooManyRequests

from events.deadline import after, remaining, within
from events.errors import ReadModelLagging, SchemaNotReady, StoreUnavailable
from events.position import PositionToken
from query_side.errors import ProjectionNotKept
from taskledger.postgres import Pool

BUDGET_SECONDS: Final = 5.0
"""The edge's deadline for one read, a retry on another connection included."""
MAX_SWITCHES: Final = 5
"""How many switches of generation a single read may meet before it gives up. Each is an operator's act."""

MAX_TRIES: Final = 3
"""Of a read that loses its connection, inside the budget: reads can be repeated."""

TASKS: Final = "tasks"
"""The projection that the read tables are."""

_SQL: Final = Path(__file__).parent / "sql"
_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError)
_NO_TABLE: Final = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)

_LIVE: Final = """
with live as materialized (
    select g.generation, coalesce(c.position, 0) as checkpoint, i.tag
    from taskledger.projection_generations g
    cross join taskledger.log_identity i
    left join taskledger.checkpoints c on c.name = g.projection || '/' || g.generation
    where g.projection = '{projection}' and g.state = 'live'
)
select live.generation as live_generation, live.checkpoint as live_checkpoint, live.tag as live_tag,
       found.*
from live left join lateral (
"""
_NO_GENERATION: Final = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What every row of one answer belongs to."""

    checkpoint: int
    tag: str

    @property
    def token(self) -> str:
        return self.token_of(self.checkpoint)

    def token_of(self, position: int) -> str:
        return str(PositionToken(position, self.tag))


@cache
def statement(name: str) -> str:
    """The text of sql/<name>.sql, in which `{read}` stands for the generation's schema."""
    return (_SQL / f"{name}.sql").read_text(encoding="utf-8")


Row = dict[str, Any]


class ReadModel:
    """Made with a pool; knows by itself which generation is live, and follows a switch."""

    def __init__(
        self, pool: Pool, *, projection: str = TASKS, budget_seconds: float = BUDGET_SECONDS
    ) -> None:
        """`projection` is one of our own names, never a client's."""
        self._pool = pool
        self._projection = projection
        self._live = _LIVE.replace("{projection}", projection)
        self._budget = budget_seconds
        self._generation = _NO_GENERATION

    async def fetch(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        prepare: bool = True,
        order: str = "",
    ) -> tuple[Snapshot, list[Row]]:
        """The rows of a SELECT over the live generation, and the snapshot they belong to.

        The statement itself says which generation was live in its snapshot: rows of another one are
        thrown away and read again. `order` sorts the outer rows. Raises StoreUnavailable,
        SchemaNotReady, and ReadModelLagging when there is no generation yet
        (of another projection: ProjectionNotKept).
        """
        deadline = after(self._budget)
        for _ in range(MAX_SWITCHES):
            if self._generation == _NO_GENERATION:
                await self._find_live(deadline)
            select = sql.format(read=f"taskledger_read_g{self._generation}")
            text = f"{self._live}{select}) found on true {order}"
            try:
                rows = await self.read(text, parameters or {}, prepare=prepare, deadline=deadline)
            except _NO_TABLE:  # pruned since we looked; if it was never migrated, _find_live says so
                self._generation = _NO_GENERATION
                continue
            except psycopg.errors.UndefinedColumn as error:
                raise SchemaNotReady(
                    "the read tables are another release's: run `taskledger rebuild`"
                ) from error
            if rows and rows[0]["live_generation"] == self._generation:
                return _split(rows)
            self._generation = _NO_GENERATION
        raise ReadModelLagging("the read tables are being switched")

    async def _find_live(self, deadline: float) -> None:
        text = f"{self._live} select true as present) found on true"
        try:
            rows = await self.read(text, {}, deadline=deadline)
        except _NO_TABLE as error:
            raise SchemaNotReady("the database has not been migrated: run `taskledger migrate`") from error
        if not rows and self._projection != TASKS:
            raise ProjectionNotKept(self._projection)
        if not rows:
            raise ReadModelLagging("there are no read tables yet: the projector makes them")
        self._generation = int(rows[0]["live_generation"])

    async def read(
        self,
        text: str,
        parameters: Mapping[str, Any] | Sequence[Any],
        *,
        prepare: bool = True,
        deadline: float | None = None,
    ) -> list[Row]:
        """Any SELECT, as it stands. Raises StoreUnavailable, and psycopg errors for what is wrong with
        the statement."""
        if deadline is None:
            deadline = after(self._budget)
        for _ in range(MAX_TRIES - 1):
            try:
                return await within(deadline, self._execute(text, parameters, prepare, deadline))
            except _LOST:
                # After a restart of the server every idle connection is dead: replace them all at once.
                await within(deadline, self._pool.check())
        try:
            return await within(deadline, self._execute(text, parameters, prepare, deadline))
        except _LOST as error:
            raise StoreUnavailable("the database cannot be reached") from error

    async def _execute(
        self, text: str, parameters: Mapping[str, Any] | Sequence[Any], prepare: bool, deadline: float
    ) -> list[Row]:
        try:
            async with self._pool.connection(timeout=remaining(deadline)) as connection:
                cursor = connection.cursor(row_factory=dict_row, binary=True)
                await cursor.execute(text.encode(), parameters, prepare=prepare)
                return await cursor.fetchall()
        except (PoolTimeout, TooManyRequests) as error:
            raise StoreUnavailable("no database connection came free in time") from error


def _split(rows: Sequence[Row]) -> tuple[Snapshot, list[Row]]:
    """Without a match the join leaves one row of nulls, told by its `present`."""
    first = rows[0]
    snapshot = Snapshot(int(first["live_checkpoint"]), str(first["live_tag"]))
    return snapshot, [row for row in rows if row["present"]]
