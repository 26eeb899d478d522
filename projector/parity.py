"""Whether two generations at the same checkpoint hold the same, and if not, where."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import TupleRow

from projector.view import schema_name

SHOWN: Final = 20

_KEYS: Final = {
    "tasks": ("id",),
    "counts": ("tenant", "queue", "kind", "status"),
    "activity": ("minute",),
    "queues": ("tenant", "queue"),
}
_COLUMNS: Final = """
select array_agg(column_name::text) from information_schema.columns
where table_schema = %s and table_name = %s
"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One generation as a transaction of this connection, isolated from later changes, sees it."""

    connection: Connection[TupleRow]
    generation: int


def differences(old: Snapshot, new: Snapshot, *, shown: int = SHOWN) -> list[str]:
    """The first `shown`, a line each; empty if every row is the same.

    Digests of whole tables are compared first, rows only where those differ. Columns that only one
    of the two releases knows are left out.
    """
    lines: list[str] = []
    for table, keys in _KEYS.items():
        common = sorted(_columns(old, table) & _columns(new, table))
        if _digest(old, table, common) != _digest(new, table, common):
            lines += islice(_unequal(old, new, table, keys, common), shown - len(lines))
    return lines


def _columns(snapshot: Snapshot, table: str) -> set[str]:
    row = snapshot.connection.execute(_COLUMNS, (schema_name(snapshot.generation), table)).fetchone()
    return set() if row is None or row[0] is None else set(row[0])


def _digest(snapshot: Snapshot, table: str, columns: Sequence[str]) -> TupleRow | None:
    return snapshot.connection.execute(
        f"select count(*), sum(hash_record_extended(row({', '.join(columns)}), 0)::numeric)"
        f" from {schema_name(snapshot.generation)}.{table}".encode()
    ).fetchone()


def _unequal(
    old: Snapshot, new: Snapshot, table: str, keys: Sequence[str], columns: Sequence[str]
) -> Iterator[str]:
    """Both tables side by side in the order of their keys."""
    left, right = _rows(old, table, keys, columns), _rows(new, table, keys, columns)
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a[0] < b[0]):
            assert a is not None  # noqa: S101  by the loop's condition
            yield f"{table} {_named(a[0])}: the log has no such row"
            a = next(left, None)
        elif a is None or b[0] < a[0]:
            yield f"{table} {_named(b[0])}: the old table lacks the row"
            b = next(right, None)
        else:
            if a[1] != b[1]:
                yield f"{table} {_named(a[0])}: the old row is not what the log says"
            a, b = next(left, None), next(right, None)


def _rows(
    snapshot: Snapshot, table: str, keys: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Key and hash of each row, in an order that Python shares: UUIDs and times have one, text by bytes."""
    key = [f'{name} collate "C"' if len(keys) > 1 else name for name in keys]
    with snapshot.connection.cursor(name=f"parity_{table}_{snapshot.generation}") as cursor:
        cursor.itersize = 10_000
        cursor.execute(
            f"select {', '.join(keys)}, hash_record_extended(row({', '.join(columns)}), 0)"
            f" from {schema_name(snapshot.generation)}.{table} order by {', '.join(key)}".encode()
        )
        for row in cursor:
            yield row[:-1], row[-1]


def _named(key: tuple[Any, ...]) -> str:
    return "/".join(str(part) for part in key)
