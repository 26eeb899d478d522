"""The read tables of one generation: making them, reading rows back, writing a batch's changes."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from projector.fold import ACTIVITIES, FOLD_VERSION, Changes, QueueRow, TaskRow
from projector.rows import COLUMNS, ID, LOADED, MUTABLE, Column, row_of, text, values_of

PROJECTION: Final = "tasks"
_ACTIVITY: Final = tuple(ACTIVITIES.values())
_TABLES: Final = (Path(__file__).parent / "sql" / "tables.sql").read_text(encoding="utf-8")

SCHEMA_VERSION: Final = hashlib.sha256(f"{_TABLES}\n{FOLD_VERSION}".encode()).hexdigest()[:16]
"""Of the generations that this release makes and can go on folding."""


def schema_name(generation: int) -> str:
    return f"taskledger_read_g{generation:d}"


def create_tables(connection: Connection[TupleRow], generation: int) -> None:
    connection.execute(_TABLES.format(schema=schema_name(generation)).encode())


def drop_tables(connection: Connection[TupleRow], generation: int) -> None:
    connection.execute(f"drop schema if exists {schema_name(generation)} cascade".encode())


_STAGED: Final = (ID, *MUTABLE)


class TasksView:
    """Statements of one generation. The caller opens the transaction, and moves the checkpoint in it."""

    def __init__(self, generation: int) -> None:
        schema = schema_name(generation)
        self.generation = generation
        self._load = f"select {', '.join(LOADED)} from {schema}.tasks where id = any(%b)".encode()
        self._insert = _copy_into(f"{schema}.tasks", COLUMNS)
        self._update = (
            f"update {schema}.tasks t set {', '.join(f'{c.name} = s.{c.name}' for c in MUTABLE)}"
            " from pg_temp.changed_tasks s where t.id = s.id"
        ).encode()
        self._count = f"""
            insert into {schema}.counts as c (tenant, queue, kind, status, tasks)
            select * from unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::bigint[])
            on conflict (tenant, queue, kind, status) do update set tasks = c.tasks + excluded.tasks
            """.encode()
        self._forget_zeros = f"delete from {schema}.counts where tasks = 0".encode()
        sums = ", ".join(f"{name} = a.{name} + excluded.{name}" for name in _ACTIVITY)
        self._add_activity = f"""
            insert into {schema}.activity as a (minute, {", ".join(_ACTIVITY)})
            values (%s{", %s" * len(_ACTIVITY)}) on conflict (minute) do update set {sums}
            """.encode()
        self._put_queue = f"""
            insert into {schema}.queues
                (tenant, queue, version, position, paused, changed_at, changed_by, reason)
            values (%s, %s, %s, %s, %s, %s, %s, %s)
            on conflict (tenant, queue) do update set
                version = excluded.version, position = excluded.position, paused = excluded.paused,
                changed_at = excluded.changed_at, changed_by = excluded.changed_by,
                reason = excluded.reason
            """.encode()

    def load(self, connection: Connection[TupleRow], ids: Sequence[UUID]) -> dict[UUID, TaskRow]:
        """The rows that exist of these tasks, without payload."""
        if not ids:
            return {}
        cursor = connection.cursor(binary=True)
        rows = (row_of(values) for values in cursor.execute(self._load, (list(ids),), prepare=True))
        return {row.state.id: row for row in rows}

    def write(self, connection: Connection[TupleRow], changes: Changes) -> None:
        """In the caller's transaction, all of it or nothing."""
        if changes.inserted:
            _copy(connection, self._insert, COLUMNS, changes.inserted.values())
        if changes.updated:
            connection.execute(_stage())
            _copy(
                connection, _copy_into("pg_temp.changed_tasks", _STAGED), _STAGED, changes.updated.values()
            )
            connection.execute(self._update, prepare=True)
        if changes.counts:
            keys = list(changes.counts)
            arrays = [[text(key[n]) for key in keys] for n in range(4)]
            connection.execute(self._count, (*arrays, list(changes.counts.values())), prepare=True)
            connection.execute(self._forget_zeros, prepare=True)
        for minute in sorted({minute for minute, _ in changes.activity}):
            added = [changes.activity[minute, name] for name in _ACTIVITY]
            connection.execute(self._add_activity, (minute, *added), prepare=True)
        for row in changes.queues.values():
            connection.execute(self._put_queue, queue_values(row), prepare=True)


def queue_values(row: QueueRow) -> tuple[object, ...]:
    return (
        text(row.tenant),
        text(row.queue),
        row.version,
        row.position,
        row.paused,
        row.changed_at,
        text(row.changed_by),
        text(row.reason),
    )


@cache
def _stage() -> bytes:
    """Updates come by COPY into a table of the session's own: it takes nulls and arrays as they are."""
    columns = ", ".join(f"{c.name} {c.type}" for c in _STAGED)
    return f"create temporary table if not exists changed_tasks ({columns}) on commit delete rows".encode()


def _copy_into(table: str, columns: Sequence[Column]) -> bytes:
    return f"copy {table} ({', '.join(c.name for c in columns)}) from stdin (format binary)".encode()


def _copy(
    connection: Connection[TupleRow],
    statement: bytes,
    columns: Sequence[Column],
    rows: Iterable[TaskRow],
) -> None:
    with connection.cursor().copy(statement) as copy:
        copy.set_types([column.type for column in columns])
        for row in rows:
            copy.write_row(values_of(row, columns))
