"""Which generations of the read tables exist, and what may be done to them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from psycopg import Connection
from psycopg.rows import TupleRow

from projector.view import PROJECTION, SCHEMA_VERSION, create_tables, drop_tables

State = Literal["building", "live", "retired"]

_DDL_LOCK: Final = 7311461898372
"""Transaction advisory lock around making, switching and dropping generations."""

_LIST: Final = """
select g.generation, g.schema_version, g.state, coalesce(c.position, 0)
from taskledger.projection_generations g
left join taskledger.checkpoints c on c.name = g.projection || '/' || g.generation
where g.projection = %s order by g.generation
"""
_ADD: Final = """
insert into taskledger.projection_generations (projection, schema_version, state)
values (%s, %s, %s) returning generation
"""
_ADD_CHECKPOINT: Final = "insert into taskledger.checkpoints (name, position) values (%s, 0)"
_LOCK_CHECKPOINT: Final = "select position from taskledger.checkpoints where name = %s for update"
_FENCE: Final = """
select position, updated_at, case when event_position = position then event_at end
from taskledger.checkpoints where name = %s
"""
_TOUCH: Final = "update taskledger.checkpoints set updated_at = clock_timestamp() where name = %s"
_REMOVE_CHECKPOINT: Final = "delete from taskledger.checkpoints where name = %s"
_REMOVE: Final = "delete from taskledger.projection_generations where generation = %s"
_SET_STATE: Final = """
update taskledger.projection_generations set state = %s, switched_at = clock_timestamp()
where generation = %s
"""


@dataclass(frozen=True, slots=True)
class Generation:
    number: int
    schema_version: str
    state: State
    checkpoint: int

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return checkpoint_name(self.number)

    @property
    def is_ours(self) -> bool:
        """Whether this release knows its tables and folds as they were folded so far."""
        return self.schema_version == SCHEMA_VERSION


def checkpoint_name(generation: int) -> str:
    return f"{PROJECTION}/{generation}"


def generations(connection: Connection[TupleRow]) -> list[Generation]:
    """By rising number, with their checkpoints, in one snapshot."""
    return [Generation(*row) for row in connection.execute(_LIST, (PROJECTION,), prepare=True)]


def live(connection: Connection[TupleRow]) -> Generation | None:
    return next((g for g in generations(connection) if g.state == "live"), None)


def ensure_live(connection: Connection[TupleRow]) -> Generation:
    """The live generation; makes a first, empty one where there is none. Any number of processes may
    call it at once."""
    found = live(connection)
    if found is not None:
        return found
    with connection.transaction():
        lock_generations(connection)
        return live(connection) or create(connection, "live")


def lock_generations(connection: Connection[TupleRow]) -> None:
    """Until the end of the transaction nobody else makes, switches or drops a generation."""
    connection.execute("select pg_advisory_xact_lock(%s)", (_DDL_LOCK,))


def lock_checkpoint(connection: Connection[TupleRow], generation: Generation) -> int:
    """The checkpoint, which stays there until the end of the transaction."""
    row = connection.execute(_LOCK_CHECKPOINT, (generation.name,)).fetchone()
    return 0 if row is None else int(row[0])


@dataclass(frozen=True, slots=True)
class Fence:
    """What a follower must find unchanged when it writes."""

    position: int
    touched: datetime
    at: datetime | None
    """`recorded_at` of the event there, if it is known."""


def fence(connection: Connection[TupleRow], generation: Generation) -> Fence | None:
    """None where the generation was dropped."""
    row = connection.execute(_FENCE, (generation.name,)).fetchone()
    return None if row is None else Fence(*row)


def touch_checkpoint(connection: Connection[TupleRow], generation: Generation) -> None:
    """As lock_checkpoint(), and whoever has looked at the fence before writes nothing: for what changes
    which events a fold passes over."""
    connection.execute(_TOUCH, (generation.name,))


def marks(found: Iterable[Generation]) -> list[str]:
    """To compare with what there is later."""
    return [f"{generation.number}{generation.state}" for generation in found]


def set_state(connection: Connection[TupleRow], generation: Generation, state: State) -> None:
    connection.execute(_SET_STATE, (state, generation.number))


def drop(connection: Connection[TupleRow], generation: Generation) -> None:
    """With its checkpoint first: whoever is folding it finishes its transaction, then finds it gone."""
    with connection.transaction():
        lock_generations(connection)
        connection.execute(_REMOVE_CHECKPOINT, (generation.name,))
        connection.execute(_REMOVE, (generation.number,))
        drop_tables(connection, generation.number)


def prune(connection: Connection[TupleRow]) -> list[Generation]:
    """Drops what a switch has left behind and returns it. There is no way back to it afterwards."""
    retired = [g for g in generations(connection) if g.state == "retired"]
    for generation in retired:
        drop(connection, generation)
    return retired


def create(connection: Connection[TupleRow], state: State) -> Generation:
    """A new, empty generation of this release's schema. The caller holds lock_generations()."""
    row = connection.execute(_ADD, (PROJECTION, SCHEMA_VERSION, state)).fetchone()
    assert row is not None  # noqa: S101  an insert with returning gives a row
    number = int(row[0])
    connection.execute(_ADD_CHECKPOINT, (checkpoint_name(number),))
    create_tables(connection, number)
    return Generation(number, SCHEMA_VERSION, state, 0)
