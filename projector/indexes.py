"""The indexes of a generation's tasks: taken away while it is filled, and built at once when it is full."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

from projector.view import schema_name

BUILD_MEMORY: Final = "256MB"
"""For sorting, while indexes are built."""

_INDEXES: Final = """
select c.relname, format('%%I', c.relname), pg_get_indexdef(c.oid), i.indisprimary
from pg_index i join pg_class c on c.oid = i.indexrelid
where i.indrelid = %s::regclass order by i.indisprimary desc, c.relname
"""
_PRESENT: Final = """
select relname from pg_class where relnamespace = %(schema)s::regnamespace
union all select '+' || conname from pg_constraint where connamespace = %(schema)s::regnamespace
"""


@dataclass(frozen=True, slots=True)
class Later:
    """What makes them again: statements by the name of what they make."""

    build: dict[str, str] = field(default_factory=dict[str, str])
    """In any order, several at once."""
    attach: dict[str, str] = field(default_factory=dict[str, str])
    """Then these: an index becomes the primary key."""


def take_away(connection: Connection[TupleRow], generation: int) -> Later:
    schema = schema_name(generation)
    table = f"{schema}.tasks"
    later = Later()
    for name, quoted, definition, is_primary in connection.execute(_INDEXES, (table,)).fetchall():
        later.build[name] = definition
        if is_primary:
            connection.execute(f"alter table {table} drop constraint {quoted}".encode())
            later.attach[name] = (
                f"alter table {table} add constraint {quoted} primary key using index {quoted}"
            )
        else:
            connection.execute(f"drop index {schema}.{quoted}".encode())
    return later


def build(connections: Sequence[Connection[TupleRow]], generation: int, later: Later) -> None:
    """Those that are not there yet. Each connection builds one index at a time; an index is there wholly
    or not at all, whenever its builder is killed."""
    schema = schema_name(generation)
    with connections[0].transaction():
        # The server hears of a killed client only when a statement is done: it may still be building one.
        connections[0].execute(f"lock table {schema}.tasks in share row exclusive mode".encode())
        found = connections[0].execute(_PRESENT, {"schema": schema}).fetchall()
    present = {str(row[0]) for row in found}
    for connection in connections:
        connection.execute(f"set maintenance_work_mem = '{BUILD_MEMORY}'".encode())
    idle = SimpleQueue[Connection[TupleRow]]()
    for connection in connections:
        idle.put(connection)

    def build_one(statement: str) -> None:
        connection = idle.get()
        try:
            connection.execute(statement.encode())
        finally:
            idle.put(connection)

    with ThreadPoolExecutor(len(connections)) as threads:
        missing = [statement for name, statement in later.build.items() if name not in present]
        for _ in threads.map(build_one, missing):
            continue
    for name, statement in later.attach.items():
        if f"+{name}" not in present:
            connections[0].execute(statement.encode())
