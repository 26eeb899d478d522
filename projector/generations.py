"""Which generations of the read tables exist, and what may be done to them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from psycopg import Connection
from psycopg.rows import TupleRow

from projector.definition import Definition
from projector.view import TASKS, create_tables, drop_tables

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
    definition: Definition = TASKS
    """As this release has it."""

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return f"{self.definition.projection}/{self.number}"

    @property
    def is_ours(self) -> bool:
        """Whether this release knows its tables and folds as they were folded so far."""
        return self.schema_version == self.definition.version


def generations(connection: Connection[TupleRow], definition: Definition = TASKS) -> list[Generation]:
    """By rising number, with their checkpoints, in one snapshot."""
    rows = connection.execute(_LIST, (definition.projection,), prepare=True)
    return [Generation(number, version, state, at, definition) for number, version, state, at in rows]


def live(connection: Connection[TupleRow], definition: Definition = TASKS) -> Generation | None:
    return next((g for g in generations(connection, definition) if g.state == "live"), None)


def ensure_live(connection: Connection[TupleRow], definition: Definition = TASKS) -> Generation:
    """The live generation; makes a first, empty one where there is none. Any number of processes may
    call it at once."""
    found = live(connection, definition)
    if found is not None:
        return found
    with connection.transaction():
        lock_generations(connection)
        return live(connection, definition) or create(connection, "live", definition)


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


def prune(connection: Connection[TupleRow], definition: Definition = TASKS) -> list[Generation]:
    """Drops what a switch has left behind and returns it. There is no way back to it afterwards."""
    retired = [g for g in generations(connection, definition) if g.state == "retired"]
    for generation in retired:
        drop(connection, generation)
    return retired


def create(connection: Connection[TupleRow], state: State, definition: Definition = TASKS) -> Generation:
    """A new, empty generation of this release's schema. The caller holds lock_generations()."""
    row = connection.execute(_ADD, (definition.projection, definition.version, state)).fetchone()
    assert row is not None  # noqa: S101  an insert with returning gives a row
    generation = Generation(int(row[0]), definition.version, state, 0, definition)
    connection.execute(_ADD_CHECKPOINT, (generation.name,))
    create_tables(connection, generation.number, definition)
    return generation
