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
select format('%%I.%%I', n.nspname, c.relname), pg_get_indexdef(c.oid)
from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
where i.indrelid = %s::regclass and not i.indisprimary order by c.relname
"""
_PRIMARY_KEY: Final = """
select format('%%I', conname), pg_get_constraintdef(oid) from pg_constraint
where conrelid = %s::regclass and contype = 'p'
"""


@dataclass(frozen=True, slots=True)
class Later:
    """The statements that build them again."""

    primary_key: list[str]
    others: list[str]


def take_away(connection: Connection[TupleRow], generation: int) -> Later:
    table = f"{schema_name(generation)}.tasks"
    later = Later([], [])
    for name, definition in connection.execute(_PRIMARY_KEY, (table,)).fetchall():
        connection.execute(f"alter table {table} drop constraint {name}".encode())
        later.primary_key.append(f"alter table {table} add constraint {name} {definition}")
    for name, definition in connection.execute(_INDEXES, (table,)).fetchall():
        connection.execute(f"drop index {name}".encode())
        later.others.append(definition)
    return later


def build(connections: Sequence[Connection[TupleRow]], later: Later) -> None:
    """The primary key, for which the table is locked; then the others, one at a time by each connection."""
    for connection in connections:
        connection.execute(f"set maintenance_work_mem = '{BUILD_MEMORY}'".encode())
    for statement in later.primary_key:
        connections[0].execute(statement.encode())
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
        for _ in threads.map(build_one, later.others):
            continue
