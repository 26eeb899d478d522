"""The plan of a rebuild, kept with the generation that it fills: a killed one is resumed, not repeated.

The log up to one position is cut into ranges of streams. Each is folded in one transaction, which also
notes it as done, so that whoever comes next finds it either whole or untouched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Json

from projector import indexes
from projector.indexes import Later
from projector.parking import Parked, parked
from projector.view import schema_name

RANGE_EVENTS: Final = 100_000
"""About as many events has a range: a second's work, and less log than that needs no other process. It is
also what a process that is killed has folded for nothing, at most."""
_SAMPLED: Final = 50
"""Streams looked at for each range, to find where to cut."""

_TABLES: Final = (Path(__file__).parent / "sql" / "plan.sql").read_text(encoding="utf-8")
_EXISTS: Final = "select to_regclass(%s) is not null"
_TAG: Final = "select tag from taskledger.log_identity"
_RECORDED_AT: Final = "select recorded_at from taskledger.task_events where notification_id = %s"

_LAST: Final = """
select notification_id, recorded_at from taskledger.task_events
where notification_id <= %s order by notification_id desc limit 1
"""
_SAMPLE: Final = """
select originator_id from taskledger.task_events where notification_id = any(%s) order by originator_id
"""
_FIRST_KEY: Final = 0
_LAST_KEY: Final = 2**128 - 1


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Streams from `first` to `last`, both included."""

    first: UUID
    last: UUID


@dataclass(frozen=True, slots=True)
class Plan:
    generation: int
    upto: int
    """The position that all of it is folded up to."""
    at: datetime
    """`recorded_at` of the event there."""
    passed_over: Parked
    """Of events up to there."""
    later: Later
    """The indexes that were taken away meanwhile."""


def make(connection: Connection[TupleRow], generation: int, *, upto: int, processes: int) -> Plan | None:
    """For an empty generation, which loses its indexes in the same transaction. None: there is nothing
    in the log up to there."""
    last = connection.execute(_LAST, (upto,)).fetchone()
    if last is None:
        return None
    position, at = int(last[0]), last[1]
    rounds = -(-position // (RANGE_EVENTS * processes))
    ranges = cut(connection, position, processes * rounds)
    with connection.transaction():
        passed_over = parked_upto(connection, position)
        later = indexes.take_away(connection, generation)
        plan = Plan(generation, position, at, passed_over, later)
        _store(connection, plan, ranges)
    return plan


def cut(connection: Connection[TupleRow], upto: int, parts: int) -> list[KeyRange]:
    """All keys there can be in `parts` ranges, or fewer, with about as many events each."""
    step = max(1, upto // (parts * _SAMPLED))
    sampled = connection.execute(_SAMPLE, (list(range(step, upto + 1, step)),)).fetchall()
    every = -(-len(sampled) // parts) or 1
    inner = {row[0].int for row in sampled[every::every]} - {_FIRST_KEY}
    bounds = [_FIRST_KEY, *sorted(inner), _LAST_KEY + 1]
    return [KeyRange(UUID(int=first), UUID(int=after - 1)) for first, after in pairwise(bounds)]


def _store(connection: Connection[TupleRow], plan: Plan, ranges: Sequence[KeyRange]) -> None:
    schema = schema_name(plan.generation)
    connection.execute(_TABLES.format(schema=schema).encode())
    positions = [event.position for event in plan.passed_over.events]
    connection.execute(
        f"insert into {schema}.plan select %s, %s, tag, %s, %s, %s from taskledger.log_identity".encode(),
        (plan.upto, plan.at, positions, Json(plan.later.build), Json(plan.later.attach)),
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            f"insert into {schema}.plan_ranges (first, last) values (%s, %s)".encode(),
            [(keys.first, keys.last) for keys in ranges],
        )


def stored(connection: Connection[TupleRow], generation: int) -> bool:
    row = connection.execute(_EXISTS, (f"{schema_name(generation)}.plan",)).fetchone()
    return row is not None and bool(row[0])


def load(connection: Connection[TupleRow], generation: int) -> tuple[Plan, str | None]:
    """The stored plan, and why it can no longer be gone on with, if so."""
    row = connection.execute(
        f"select upto, upto_at, log_tag, parked, build, attach from {schema_name(generation)}.plan".encode()
    ).fetchone()
    assert row is not None  # noqa: S101  stored with its table, in one transaction
    upto, at, tag, positions, build, attach = row
    passed_over = parked_upto(connection, upto)
    plan = Plan(generation, upto, at, passed_over, Later(build, attach))
    if connection.execute(_TAG).fetchone() != (tag,):
        return plan, "the log was restored"
    if connection.execute(_RECORDED_AT, (upto,)).fetchone() != (at,):
        return plan, f"the log is another one: at position {upto} is not the event that was there"
    if [event.position for event in passed_over.events] != positions:
        return plan, "an event was parked, or is no longer"
    return plan, None


def parked_upto(connection: Connection[TupleRow], position: int) -> Parked:
    return Parked(event for event in parked(connection).events if event.position <= position)


def done(connection: Connection[TupleRow], generation: int) -> int:
    """How many events lie in the ranges that are folded."""
    row = connection.execute(
        f"select coalesce(sum(events), 0)::bigint from {schema_name(generation)}.plan_ranges".encode()
    ).fetchone()
    return 0 if row is None else int(row[0])


def left(connection: Connection[TupleRow], generation: int) -> list[KeyRange]:
    """What is still to be folded."""
    rows = connection.execute(
        f"select first, last from {schema_name(generation)}.plan_ranges"
        " where events is null order by first".encode()
    )
    return [KeyRange(*row) for row in rows]


def claim(connection: Connection[TupleRow], generation: int, keys: KeyRange) -> int | None:
    """Holds the range until the transaction that the caller has open ends; how many events it had if
    another process has folded it already."""
    row = connection.execute(
        f"select events from {schema_name(generation)}.plan_ranges where first = %s for update".encode(),
        (keys.first,),
    ).fetchone()
    assert row is not None  # noqa: S101  nobody deletes one
    return None if row[0] is None else int(row[0])


def note(connection: Connection[TupleRow], generation: int, keys: KeyRange, events: int) -> None:
    """In the transaction of its rows: the range is done."""
    connection.execute(
        f"update {schema_name(generation)}.plan_ranges set events = %s where first = %s".encode(),
        (events, keys.first),
    )


def discard(connection: Connection[TupleRow], generation: int) -> None:
    """In the transaction that sets the checkpoint, or empties the tables."""
    schema = schema_name(generation)
    connection.execute(f"drop table {schema}.plan, {schema}.plan_ranges".encode())
