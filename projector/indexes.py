"""The indexes of a generation's tasks: taken away while it is filled, and built at once when it is full."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

from projector.view import schema_name

BUILD_MEMORY: Final = "256MB"
"""For sorting, while indexes are built."""

_INDEXES: Final = """
select format('%%I', c.relname), pg_get_indexdef(c.oid), i.indisprimary
from pg_index i join pg_class c on c.oid = i.indexrelid
where i.indrelid = %s::regclass order by i.indisprimary desc, c.relname
"""


@dataclass(frozen=True, slots=True)
class Later:
    """What makes them again."""

    build: list[str]
    """In any order, several at once."""
    attach: list[str]
    """Then these: an index becomes the primary key."""


def take_away(connection: Connection[TupleRow], generation: int) -> Later:
    schema = schema_name(generation)
    table = f"{schema}.tasks"
    later = Later([], [])
    for name, definition, is_primary in connection.execute(_INDEXES, (table,)).fetchall():
        later.build.append(definition)
        if is_primary:
            connection.execute(f"alter table {table} drop constraint {name}".encode())
            later.attach.append(f"alter table {table} add constraint {name} primary key using index {name}")
        else:
            connection.execute(f"drop index {schema}.{name}".encode())
    return later


def build(connections: Sequence[Connection[TupleRow]], later: Later) -> None:
    """Each connection builds one index at a time."""
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
        for _ in threads.map(build_one, later.build):
            continue
    for statement in later.attach:
        connections[0].execute(statement.encode())
