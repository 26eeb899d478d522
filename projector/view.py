"""The read tables of one generation: making them, reading rows back, writing a batch's changes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from psycopg import Connection, RawCursor
from psycopg.rows import TupleRow

from events.binary_arrays import BinaryArray, array
from projector.definition import Definition
from projector.fold import ACTIVITIES, FOLD_VERSION, Changes, QueueRow, TaskRow
from projector.rows import COLUMNS, LOADED, Column, row_of, text
from projector.statements import ACTIVITY, COUNTS, QUEUES, UPDATED, Parts, write_statement

PROJECTION: Final = "tasks"
_ACTIVITY: Final = tuple(ACTIVITIES.values())
_TABLES: Final = (Path(__file__).parent / "sql" / "tables.sql").read_text(encoding="utf-8")

TASKS: Final = Definition(PROJECTION, _TABLES, FOLD_VERSION)
SCHEMA_VERSION: Final = TASKS.version
"""Of the generations that this release makes and can go on folding."""


def schema_name(generation: int) -> str:
    return f"taskledger_read_g{generation:d}"


def create_tables(connection: Connection[TupleRow], generation: int, definition: Definition) -> None:
    connection.execute(definition.tables.format(schema=schema_name(generation)).encode())


def drop_tables(connection: Connection[TupleRow], generation: int) -> None:
    connection.execute(f"drop schema if exists {schema_name(generation)} cascade".encode())


@dataclass(frozen=True, slots=True)
class Move:
    """Of the checkpoint, from where the follower knows it to be."""

    name: str
    expected: int
    fence: datetime
    """When the checkpoint was last written: see generations.fence()."""
    position: int
    at: datetime
    """`recorded_at` of the event there."""


@dataclass(frozen=True, slots=True)
class Moved:
    fence: datetime
    """The new one."""
    generations: Sequence[str]
    """As generations.marks() gives them, in the snapshot of the write."""


class TasksView:
    """Statements of one generation."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self._schema = schema_name(generation)
        self._load = f"select {', '.join(LOADED)} from {self._schema}.tasks where id = any(%b)".encode()
        self._statements: dict[Parts, bytes] = {}

    def load(self, connection: Connection[TupleRow], ids: Sequence[UUID]) -> dict[UUID, TaskRow]:
        """The rows that exist of these tasks, without payload."""
        if not ids:
            return {}
        cursor = connection.cursor(binary=True)
        rows = (row_of(values) for values in cursor.execute(self._load, (list(ids),), prepare=True))
        return {row.state.id: row for row in rows}

    def write(
        self, connection: Connection[TupleRow], changes: Changes, move: Move | None = None
    ) -> Moved | None:
        """All of it and the move, in one statement, or nothing. None if the checkpoint is not where
        `move` says: another follower, or an operator, was faster. Without `move` the caller has moved it,
        in the transaction that it has open."""
        activity = sorted({minute for minute, _ in changes.activity})
        parts = Parts(
            move is not None,
            bool(changes.inserted),
            bool(changes.updated),
            bool(changes.counts),
            bool(activity),
            bool(changes.queues),
        )
        values: list[Any] = []
        if move is not None:
            values += (move.position, move.position, move.at, move.name, move.expected, move.fence)
        if changes.inserted:
            values += _columns(COLUMNS, changes.inserted.values())
        if changes.updated:
            values += _columns(UPDATED, changes.updated.values())
        if changes.counts:
            counts = [(*map(text, key), n) for key, n in changes.counts.items()]
            values += _arrays(COUNTS, counts)
        if activity:
            added = [
                (minute, *(changes.activity[minute, name] for name in _ACTIVITY)) for minute in activity
            ]
            values += _arrays(ACTIVITY, added)
        if changes.queues:
            values += _arrays(QUEUES, [queue_values(row) for row in changes.queues.values()])
        if move is not None:
            values += (PROJECTION, self.generation)
        cursor = RawCursor(connection)
        cursor.execute(self._statement(parts), values, prepare=True)
        row = cursor.fetchone()
        return None if move is None or row is None else Moved(row[0], row[1])

    def _statement(self, parts: Parts) -> bytes:
        try:
            return self._statements[parts]
        except KeyError:
            return self._statements.setdefault(parts, write_statement(self._schema, parts))


def _columns(columns: Sequence[Column], rows: Iterable[TaskRow]) -> list[BinaryArray | None]:
    kept = list(rows)
    return [array(column.type, [column.value(row) for row in kept]) for column in columns]


def _arrays(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Any]]) -> list[BinaryArray | None]:
    by_column = zip(*rows, strict=True)
    return [array(type_, values) for (_, type_), values in zip(columns, by_column, strict=True)]


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
