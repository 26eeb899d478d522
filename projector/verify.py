"""`taskledger verify`: is the log sound and still what was sealed, and is the read table what it says?

One snapshot for everything. Events and rows are read side by side in the order of their ids, so that
memory does not grow with the log.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import orjson
from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow

from events.append import RecordedEvent
from events.codec import EventMapper
from events.errors import ConfigurationError
from events.heads import Note, PublicKey
from events.ids import as_uuid
from events.migrate import check_schema
from projector import generations
from projector.audit import audit
from projector.fold import ACTIVITIES, Changes, FoldStopped, TaskRow, fold
from projector.follower import decode
from projector.generations import Generation
from projector.keeping import wrong
from projector.parking import NOTHING, Parked, parked
from projector.rebuild import MAINTENANCE
from projector.rows import COLUMNS, NAMES, PRIVATE, told, values_of
from projector.tally import Tally, load_tallies
from projector.verify_tally import tally_differences
from projector.verify_tree import Sealed, verify_tree
from projector.view import queue_values, schema_name
from taskledger.postgres import connect_sync
from taskledger.settings import Settings
from taskledger.signing_key import public_keys

SHOWN: Final = 100

_ORDER: Final = """
select position, previous, recorded_at < previous_at from (
    select notification_id as position, lag(notification_id, 1, 0::bigint) over w as previous,
           recorded_at, lag(recorded_at) over w as previous_at
    from taskledger.task_events window w as (order by notification_id)
) s where position <> previous + 1 or recorded_at < previous_at order by position
"""
_EVENTS: Final = b"""
select originator_id, originator_version, topic, state, notification_id, recorded_at, tenant, kind, queue
from taskledger.task_events order by originator_id, originator_version
"""
_HEAD: Final = "select count(*), coalesce(max(notification_id), 0) from taskledger.task_events"


@dataclass(slots=True)
class Report:
    events: int = 0
    tasks: int = 0
    checkpoint: int = 0
    count: int = 0
    """Of all differences."""
    differences: list[str] = field(default_factory=list[str])
    """The first 100."""
    parked: Parked = NOTHING
    """What the read tables pass over as told: no difference."""
    sealed: Sealed = field(default_factory=Sealed)

    def add(self, difference: str) -> None:
        self.count += 1
        if self.count <= SHOWN:
            self.differences.append(difference)


def inspect(
    dsn: str, keys: Sequence[PublicKey] = (), kept: Note | None = None, tallies: Sequence[Tally] = ()
) -> Report:
    """Heads of the tree should be signed with one of the `keys`, if any; `kept` is a head from elsewhere.
    Raises psycopg errors, and SchemaNotReady on a database that is not migrated."""
    with connect_sync(dsn, name="verify", options=MAINTENANCE, autocommit=False) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        check_schema(connection)
        generation = generations.live(connection)
        report = Report(
            checkpoint=0 if generation is None else generation.checkpoint, parked=parked(connection)
        )
        head = _check_order(connection, report)
        report.sealed = verify_tree(connection, keys, report.add, head=head, kept=kept)
        if generation is None:
            report.add("there is no live generation of the read tables")
        elif not generation.is_ours:
            report.add(f"generation {generation.number} has another release's schema: not compared")
            generation = None
        _Comparison(connection, generation, report).run()
        if generation is not None and not report.count:
            for difference in wrong(connection, generation, EventMapper()):
                report.add(difference)
        for tally in tallies:
            for difference in tally_differences(connection, tally):
                report.add(difference)
        return report


def verify(
    dsn: str, keys: Sequence[PublicKey] = (), kept: Note | None = None, tallies: Sequence[Tally] = ()
) -> int:
    """Prints what inspect() finds; returns the exit code: 1 on any difference."""
    report = inspect(dsn, keys, kept, tallies)
    out = sys.stdout
    out.writelines(f"{line}\n" for line in report.differences)
    if report.count > len(report.differences):
        out.write(f"… and {report.count - len(report.differences)} more\n")
    for event in report.parked.events:
        out.write(f"parked: {event}, by {event.by} at {event.at:%Y-%m-%d %H:%M} UTC: {event.reason}\n")
    out.writelines(f"{line}\n" for line in _about_seals(report, kept))
    verdict = f"{report.count} differences" if report.count else "no difference"
    if report.parked.events:
        verdict += f", {len(report.parked.events)} parked"
    out.write(f"{report.events} events, {report.tasks} tasks, checkpoint {report.checkpoint}: {verdict}\n")
    return 1 if report.count else 0


def run(settings: Settings, *, head: Path | None = None, public_key: Path | None = None) -> int:
    """`taskledger verify`. Returns the exit code. Raises ConfigurationError for a key that is none, and
    MalformedHead."""
    kept = None if head is None else Note.parse(_note_in(head))
    tallies = load_tallies(settings.projections)
    return verify(settings.require_postgres(), public_keys(settings, public_key), kept, tallies)


def _note_in(path: Path) -> str:
    """A head as `GET /proof/head` answers it, or the note alone."""
    try:
        text = path.read_text(encoding="utf-8")
        return str(orjson.loads(text)["note"]) if text.startswith("{") else text
    except (OSError, ValueError, LookupError, TypeError):
        raise ConfigurationError(f"{path} holds no head as GET /proof/head answers it") from None


def _about_seals(report: Report, kept: Note | None) -> Iterator[str]:
    sealed = report.sealed
    yield from sealed.remarks
    if sealed.size or kept is not None:
        signed = {True: "signed", False: "NOT signed with the key at hand", None: "signature not checked"}
        yield f"{sealed.size} of {report.events} events are sealed, {signed[sealed.signed]}"


def _check_order(connection: Connection[TupleRow], report: Report) -> int:
    """Returns the log's head."""
    row = connection.execute(_HEAD).fetchone()
    report.events, head = (0, 0) if row is None else (int(row[0]), int(row[1]))
    if report.checkpoint > head:
        report.add(f"log: the checkpoint, {report.checkpoint}, lies beyond the log's head, {head}")
    for position, previous, fell in connection.execute(_ORDER):
        if position != previous + 1:
            report.add(f"log: position {position} follows {previous}")
        if fell:
            report.add(f"log: recorded_at falls at position {position}")
    return head


class _Comparison:
    def __init__(
        self, connection: Connection[TupleRow], generation: Generation | None, report: Report
    ) -> None:
        self._connection = connection
        self._schema = "" if generation is None else schema_name(generation.number)
        self._report = report
        self._mapper = EventMapper()
        self._totals = Changes(0)

    def run(self) -> None:
        rows = self._rows()
        row = next(rows, None)
        for task_id, recorded in self._streams():
            while row is not None and row[0] < task_id:
                self._report.add(f"task {row[0]}: a row without events")
                row = next(rows, None)
            expected = self._fold_stream(task_id, recorded)
            found = None
            if row is not None and row[0] == task_id:
                found, row = row, next(rows, None)
            if self._schema:
                self._compare(task_id, expected, found)
        while row is not None:
            self._report.add(f"task {row[0]}: a row without events")
            row = next(rows, None)
        if self._schema:
            self._compare_totals()

    def _streams(self) -> Iterator[tuple[UUID, list[RecordedEvent]]]:
        with self._connection.cursor(name="verify_events", binary=True) as cursor:
            cursor.itersize = 5_000
            cursor.execute(_EVENTS)
            for task_id, rows in groupby(cursor, key=lambda row: row[0]):
                yield as_uuid(task_id), [RecordedEvent(*row) for row in rows]

    def _rows(self) -> Iterator[TupleRow]:
        if not self._schema:
            return
        with self._connection.cursor(name="verify_rows", binary=True) as cursor:
            cursor.itersize = 2_000
            cursor.execute(f"select {', '.join(NAMES)} from {self._schema}.tasks order by id".encode())
            yield from cursor

    def _fold_stream(self, task_id: UUID, recorded: Sequence[RecordedEvent]) -> TaskRow | None:
        """The row as of the checkpoint; what it adds to the counters goes into the totals."""
        passed_over = self._report.parked
        decoded = decode(recorded, self._mapper, passed_over)
        if decoded.stopped is not None:
            self._report.add(f"log: {decoded.stopped}")
        # Nothing can be said of what comes after an event that nobody could read.
        readable = sum(1 for _ in takewhile(lambda event: not passed_over.covers(event), recorded))
        for finding in audit(decoded.entries[:readable]):
            self._report.add(f"log: {task_id}: {finding}")
        seen = [entry for entry in decoded.entries if entry.position <= self._report.checkpoint]
        if not seen:
            return None
        try:
            changes = fold(seen, {})
        except FoldStopped:
            return None  # audit() has said why
        self._totals.counts.update(changes.counts)
        self._totals.activity.update(changes.activity)
        self._totals.queues.update(changes.queues)
        return changes.inserted.get(task_id)

    def _compare(self, task_id: UUID, expected: TaskRow | None, found: TupleRow | None) -> None:
        if expected is None:
            if found is not None:
                self._report.add(f"task {task_id}: a row that the log does not give")
            return
        self._report.tasks += 1
        if found is None:
            self._report.add(f"task {task_id}: no row")
            return
        for column, ours, theirs in zip(COLUMNS, values_of(expected), found, strict=True):
            if ours != theirs:
                self._report.add(f"task {task_id}: {column.name} {told(column.name, theirs, ours)}")

    def _compare_totals(self) -> None:
        counts = {key: (n,) for key, n in self._totals.counts.items() if n}
        self._compare_table("counts", ("tenant", "queue", "kind", "status"), ("tasks",), counts)
        names = tuple(ACTIVITIES.values())
        minutes = {minute for minute, _ in self._totals.activity}
        activity = {(m,): tuple(self._totals.activity[m, name] for name in names) for m in minutes}
        self._compare_table("activity", ("minute",), names, activity)
        values = ("version", "position", "paused", "changed_at", "changed_by", "reason")
        queues = {key: queue_values(row)[2:] for key, row in self._totals.queues.items()}
        self._compare_table("queues", ("tenant", "queue"), values, queues)

    def _compare_table(
        self, table: str, keys: Sequence[str], names: Sequence[str], wanted: Mapping[Any, tuple[Any, ...]]
    ) -> None:
        query = f"select {', '.join((*keys, *names))} from {self._schema}.{table}".encode()
        found = {row[: len(keys)]: row[len(keys) :] for row in self._connection.execute(query)}
        for key in sorted(wanted.keys() | found.keys()):
            if wanted.get(key) != found.get(key):
                name = "/".join(str(part) for part in key)
                is_now, should_be = (_shown(names, values.get(key)) for values in (found, wanted))
                self._report.add(f"{table} {name}: is {is_now}, the log says {should_be}")


def _shown(names: Sequence[str], values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if values is None:
        return None
    pairs = zip(names, values, strict=True)
    return tuple("…" if name in PRIVATE and value is not None else value for name, value in pairs)
