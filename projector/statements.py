"""The statement that writes a batch: rows, counters and checkpoint together, in one round trip.

It is put together from the parts that the batch needs, each over the arrays of its columns. The first part
moves the checkpoint, and all others join it: where it does not move, nothing is written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from events.binary_arrays import parameter_type
from events.tracking import READ_CHANNEL
from projector.fold import ACTIVITIES
from projector.rows import COLUMNS, ID, MUTABLE, Column

UPDATED: Final = (ID, *MUTABLE)
COUNT_KEY: Final = (("tenant", "text"), ("queue", "text"), ("kind", "text"), ("status", "text"))
COUNTS: Final = (*COUNT_KEY, ("tasks", "int8"))
ACTIVITY: Final = (("minute", "timestamptz"), *((name, "int8") for name in ACTIVITIES.values()))
QUEUES: Final = (
    ("tenant", "text"),
    ("queue", "text"),
    ("version", "int8"),
    ("position", "int8"),
    ("paused", "bool"),
    ("changed_at", "timestamptz"),
    ("changed_by", "text"),
    ("reason", "text"),
)

_MOVED: Final = """moved as (
    update taskledger.checkpoints
    set position = {}::int8, event_position = {}::int8, event_at = {}::timestamptz,
        updated_at = clock_timestamp()
    where name = {}::text and position = {}::int8 and updated_at = {}::timestamptz
    returning position, updated_at
)"""
_MOVED_ALREADY: Final = "moved as (select)"

_TOLD: Final = f"""
select m.updated_at,
       (select array_agg(g.generation || g.state order by g.generation)
        from taskledger.projection_generations g where g.projection = {{}}::text),
       (select pg_notify('{READ_CHANNEL}', m.position::text)
        from taskledger.projection_generations g where g.generation = {{}}::int4 and g.state = 'live')
from moved m"""
"""The new fence, the generations there are, and a notification to whoever waits for the live one."""


@dataclass(frozen=True)
class Parts:
    """Which parts a batch needs."""

    move: bool
    inserted: bool
    updated: bool
    counts: bool
    activity: bool
    queues: bool


def write_statement(schema: str, parts: Parts) -> bytes:
    """Its parameters, in this order: of the move (if so) the new position, the same as `event_position`,
    `event_at`, then name, expected position and fence; the columns of each part that is there, in the
    order of Parts; of the move the projection and the generation."""
    number = count(1)
    texts = [_numbered(_MOVED, number) if parts.move else _MOVED_ALREADY]
    if parts.inserted:
        texts.append(_inserted(schema, number))
    if parts.updated:
        texts.append(_updated(schema, number))
    if parts.counts:
        texts.append(_counted(schema, number))
    if parts.activity:
        texts.append(_added(schema, number))
    if parts.queues:
        texts.append(_queues(schema, number))
    told = _numbered(_TOLD, number) if parts.move else " select from moved"
    return f"with {', '.join(texts)}{told}".encode()


def _numbered(text: str, number: Iterator[int]) -> str:
    return text.format(*(f"${next(number)}" for _ in range(text.count("{}"))))


def _unnest(columns: Sequence[tuple[str, str]], number: Iterator[int]) -> str:
    arrays = ", ".join(f"${next(number)}::{parameter_type(type_)}" for _, type_ in columns)
    return f"moved, unnest({arrays}) as u({_names(columns)})"


def _names(columns: Sequence[tuple[str, str]]) -> str:
    return ", ".join(name for name, _ in columns)


def _typed(columns: Sequence[Column]) -> list[tuple[str, str]]:
    return [(column.name, column.type) for column in columns]


def _inserted(schema: str, number: Iterator[int]) -> str:
    columns = _typed(COLUMNS)
    values = ", ".join(f"u.{name}" + ("::text[]" if type_ == "text[]" else "") for name, type_ in columns)
    return f"""inserted as (
        insert into {schema}.tasks ({_names(columns)}) select {values} from {_unnest(columns, number)}
    )"""


def _updated(schema: str, number: Iterator[int]) -> str:
    values = ", ".join(f"{column.name} = u.{column.name}" for column in MUTABLE)
    return f"""updated as (
        update {schema}.tasks t set {values} from {_unnest(_typed(UPDATED), number)} where t.id = u.id
    )"""


def _counted(schema: str, number: Iterator[int]) -> str:
    """A statement changes no row twice, so that the rows which come to 0 are told from the others first.
    Nobody else writes here: what the statement sees is what there is."""
    key = _names(COUNT_KEY)
    same = " and ".join(f"c.{name} = d.{name}" for name, _ in COUNT_KEY)
    to_zero = f"{same} and c.tasks + d.tasks = 0"
    return f"""differences as materialized (select u.* from {_unnest(COUNTS, number)}),
    emptied as (delete from {schema}.counts c using differences d where {to_zero}),
    counted as (
        insert into {schema}.counts as c ({key}, tasks) select d.* from differences d
        where not exists (select from {schema}.counts c where {to_zero})
        on conflict ({key}) do update set tasks = c.tasks + excluded.tasks
    )"""


def _added(schema: str, number: Iterator[int]) -> str:
    sums = ", ".join(f"{name} = a.{name} + excluded.{name}" for name in ACTIVITIES.values())
    return f"""added as (
        insert into {schema}.activity as a ({_names(ACTIVITY)}) select u.* from {_unnest(ACTIVITY, number)}
        on conflict (minute) do update set {sums}
    )"""


def _queues(schema: str, number: Iterator[int]) -> str:
    values = ", ".join(f"{name} = excluded.{name}" for name, _ in QUEUES[2:])
    return f"""put as (
        insert into {schema}.queues ({_names(QUEUES)}) select u.* from {_unnest(QUEUES, number)}
        on conflict (tenant, queue) do update set {values}
    )"""
