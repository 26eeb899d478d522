"""Whether two generations at the same checkpoint hold the same; if not, where, and what explains it."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import TupleRow

from projector.generations import Generation
from projector.rows import told
from projector.view import schema_name

SHOWN: Final = 20
"""Differences that are told one by one; all are counted."""
EXAMINED: Final = 1_000
"""Rows of a table that are looked into, to tell in which columns they differ."""

_COLUMNS: Final = """
select attname, format_type(atttypid, atttypmod) from pg_attribute
where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped
"""

Tables = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One generation as a transaction of this connection, isolated from later changes, sees it."""

    connection: Connection[TupleRow]
    generation: Generation

    def table(self, name: str) -> str:
        return f"{schema_name(self.generation.number)}.{name}"

    def columns(self, table: str) -> dict[str, str]:
        """Name -> type."""
        rows = self.connection.execute(_COLUMNS, (self.table(table),))
        return {str(row[0]): str(row[1]) for row in rows}


@dataclass(slots=True)
class Parity:
    old: str = ""
    """Digest of the old generation's rows, as far as both know their columns."""
    new: str = ""
    count: int = 0
    """Rows that are not the same, of all tables."""
    differences: list[str] = field(default_factory=list[str])
    """The first 20, a line each: table, row, column, both values; a client's data is not shown."""
    reasons: list[str] = field(default_factory=list[str])
    """What in the two definitions explains it."""


def compare(old: Snapshot, new: Snapshot, tables: Tables) -> Parity:
    """`tables` with their primary keys. Digests of whole tables first, rows where those differ."""
    parity = Parity()
    digests: tuple[list[str], list[str]] = ([], [])
    columns = Counter[str]()
    for table, keys in tables.items():
        ours, theirs = new.columns(table), old.columns(table)
        common = sorted(name for name, type_ in ours.items() if theirs.get(name) == type_)
        both = _digest(old, table, common), _digest(new, table, common)
        for digest, value in zip(digests, both, strict=True):
            digest.append(f"{table} {value}")
        if both[0] != both[1]:
            _Comparison(old, new, table, keys, common, parity, columns).run()
    parity.old, parity.new = (_short(digest) for digest in digests)
    if parity.count or old.generation.schema_version != new.generation.schema_version:
        parity.reasons = _reasons(old, new, tables, columns)
    return parity


def _digest(snapshot: Snapshot, table: str, columns: Sequence[str]) -> TupleRow | None:
    """Number of rows, and the sum of their hashes: the same in any order."""
    return snapshot.connection.execute(
        f"select count(*), sum(hash_record_extended(row({', '.join(columns)}), 0)::numeric)"
        f" from {snapshot.table(table)}".encode()
    ).fetchone()


def _short(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _reasons(old: Snapshot, new: Snapshot, tables: Tables, columns: Counter[str]) -> list[str]:
    before, now = old.generation, new.generation
    if before.schema_version == now.schema_version:
        known = f"generation {before.number} has this release's definition ({now.schema_version})"
        lines = [f"{known}: its rows were changed by hand, or by a fault"]
    else:
        other = f"generation {before.number} has definition {before.schema_version}"
        lines = [f"{other}, this release has {now.schema_version}"]
        lines += _changed_columns(old, new, tables) or [
            "they have the same columns: indexes or the fold were changed"
        ]
    if columns:
        found = ", ".join(f"{name} in {count:,}" for name, count in columns.most_common())
        lines.append(f"of the rows looked into (up to {EXAMINED:,} a table), these columns differ: {found}")
    return lines


def _changed_columns(old: Snapshot, new: Snapshot, tables: Tables) -> list[str]:
    lines: list[str] = []
    for table in tables:
        before, now = old.columns(table), new.columns(table)
        for name in sorted(before.keys() | now.keys()):
            if name not in now:
                lines.append(f"column {table}.{name} is no longer there")
            elif name not in before:
                lines.append(f"column {table}.{name} is new")
            elif before[name] != now[name]:
                lines.append(f"column {table}.{name} was {before[name]} and is {now[name]}")
    return lines


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Of one table."""

    old: Snapshot
    new: Snapshot
    table: str
    keys: Sequence[str]
    columns: Sequence[str]
    parity: Parity
    differing: Counter[str]
    """How many rows differ in which column."""

    def run(self) -> None:
        """Both tables side by side in the order of their keys."""
        left, right = self._rows(self.old), self._rows(self.new)
        a, b = next(left, None), next(right, None)
        examined = 0
        while a is not None or b is not None:
            if b is None or (a is not None and a[0] < b[0]):
                assert a is not None  # noqa: S101  by the loop's condition
                self._tell(a[0], "the log has no such row")
                a = next(left, None)
            elif a is None or b[0] < a[0]:
                self._tell(b[0], "the old table lacks the row")
                b = next(right, None)
            else:
                if a[1] != b[1]:
                    self.parity.count += 1
                    examined += 1
                    if examined <= EXAMINED:
                        self._examine(a[0])
                a, b = next(left, None), next(right, None)

    def _tell(self, key: tuple[Any, ...], what: str) -> None:
        self.parity.count += 1
        self._show(key, what)

    def _show(self, key: tuple[Any, ...], what: str) -> None:
        if len(self.parity.differences) < SHOWN:
            self.parity.differences.append(f"{self.table} {'/'.join(map(str, key))}: {what}")

    def _examine(self, key: tuple[Any, ...]) -> None:
        before, now = self._row(self.old, key), self._row(self.new, key)
        for name, was, is_now in zip(self.columns, before, now, strict=True):
            if was != is_now:
                self.differing[f"{self.table}.{name}"] += 1
                self._show(key, f"{name} {told(name, was, is_now)}")

    def _row(self, snapshot: Snapshot, key: tuple[Any, ...]) -> TupleRow:
        row = snapshot.connection.execute(
            f"select {', '.join(self.columns)} from {snapshot.table(self.table)}"
            f" where ({', '.join(self.keys)}) = ({', '.join('%s' for _ in key)})".encode(),
            key,
        ).fetchone()
        assert row is not None  # noqa: S101  read with its hash from the same snapshot
        return row

    def _rows(self, snapshot: Snapshot) -> Iterator[tuple[tuple[Any, ...], int]]:
        """Key and hash of each row, in an order that Python shares: UUIDs and times have one, text by
        bytes."""
        types = self.new.columns(self.table)
        order = ", ".join(f'{n} collate "C"' if types[n] == "text" else n for n in self.keys)
        name = f"parity_{self.table}_{snapshot.generation.number}"
        with snapshot.connection.cursor(name=name) as cursor:
            cursor.itersize = 10_000
            cursor.execute(
                f"select {', '.join(self.keys)}, hash_record_extended(row({', '.join(self.columns)}), 0)"
                f" from {snapshot.table(self.table)} order by {order}".encode()
            )
            for row in cursor:
                yield row[:-1], row[-1]
