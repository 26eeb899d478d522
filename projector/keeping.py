"""Kept counts: at every so many positions, how many tasks were in which state.

They come from the counters, one small insert every KEPT_EVERY events. Where they are missing (a generation
that was just rebuilt, an event that is parked no longer) they are made backwards from the next one above,
by undoing what the log changed between: each a bounded piece of work, until no gap is left down to
position 0.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow, dict_row
from psycopg.types.json import Jsonb

from events.codec import EventMapper
from events.counting import CHANGES, Counts, back, changes, counts_of, forward
from projector.generations import Generation
from projector.view import schema_name

KEPT_EVERY: Final = 10_000


class Point(NamedTuple):
    position: int
    counts: Counts


_LAST: Final = "select coalesce(max(position), 0) from taskledger.kept_counts where generation = %s"
_KEEP: Final = """
insert into taskledger.kept_counts (generation, position, counts)
select %(generation)s, c.position, coalesce(n.counts, '[]')
from taskledger.checkpoints c
cross join (
    select jsonb_agg(jsonb_build_array(tenant, queue, kind, status, tasks)) as counts from {schema}.counts
) n
where c.name = %(name)s and c.position >= %(at_least)s
on conflict do nothing
"""
_GAP: Final = """
select k.high, c.counts from (
    select high from (
        select position as high, lag(position, 1, 0::bigint) over (order by position) as low
        from taskledger.kept_counts where generation = %(generation)s
    ) each_one where high - low >= 2 * %(every)s order by high desc limit 1
) k join taskledger.kept_counts c on c.generation = %(generation)s and c.position = k.high
"""
_PUT: Final = """
insert into taskledger.kept_counts (generation, position, counts) values (%s, %s, %s) on conflict do nothing
"""
_ALL: Final = "select position, counts from taskledger.kept_counts where generation = %s order by position"
_FORGET: Final = "delete from taskledger.kept_counts where position >= %s"


def keep(connection: Connection[TupleRow], generation: Generation, *, every: int = KEPT_EVERY) -> bool:
    """One point at the checkpoint, if it is that far beyond the last one. Counters and checkpoint come from
    one snapshot. Whether it was made."""
    row = connection.execute(_LAST, (generation.number,)).fetchone()
    at_least = (0 if row is None else int(row[0])) + every
    if generation.checkpoint < at_least:
        return False
    text = _KEEP.format(schema=schema_name(generation.number))
    values = {"generation": generation.number, "name": generation.name, "at_least": at_least}
    return connection.execute(text.encode(), values).rowcount == 1


def next_gap(
    connection: Connection[TupleRow],
    generation: Generation,
    mapper: EventMapper,
    *,
    every: int = KEPT_EVERY,
) -> Point | None:
    """What belongs into the highest gap; None where there is none. Reads a stretch of the log, for which
    nobody should wait. Raises UnknownEvent and UndecodableEvent."""
    row = connection.execute(_GAP, {"generation": generation.number, "every": every}).fetchone()
    if row is None:
        return None
    high = int(row[0])
    counts = back(counts_of(row[1]), _changes(connection, mapper, high - every, high))
    return Point(high - every, counts)


def put(connection: Connection[TupleRow], generation: Generation, point: Point) -> None:
    connection.execute(_PUT, (generation.number, point.position, _stored(point.counts)))


def forget_from(connection: Connection[TupleRow], position: int) -> None:
    """Points that an event does not count in which it will: they are made again. In the transaction that
    applies it."""
    connection.execute(_FORGET, (position,))


def wrong(connection: Connection[TupleRow], generation: Generation, mapper: EventMapper) -> Iterator[str]:
    """What the log gives otherwise than it is kept. Reads the log once."""
    counts, low = Counts(), 0
    for position, stored in connection.execute(_ALL, (generation.number,)).fetchall():
        counts = forward(counts, _changes(connection, mapper, low, position))
        low = position
        if counts != counts_of(stored):
            yield f"kept counts at position {position} are not what the log gives"


def _changes(connection: Connection[TupleRow], mapper: EventMapper, low: int, high: int) -> Counts:
    cursor = connection.cursor(row_factory=dict_row, binary=True)
    return changes(cursor.execute(CHANGES.encode(), {"low": low, "high": high}), mapper)


def _stored(counts: Counts) -> Jsonb:
    return Jsonb([[*key, n] for key, n in counts.items()])
