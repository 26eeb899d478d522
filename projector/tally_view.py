"""The table of a tally: adding to it, and what a fold needs of the log."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from events.append import RecordedEvent
from events.codec import EventMapper, is_task_topic
from events.errors import UndecodableEvent, UnknownEvent
from events.records import known_record
from events.task_events import TaskCreated, TaskEvent
from projector.fold import FoldStopped
from projector.parking import Parked
from projector.tally import Amounts, Fact, Key, Origin, Tally, origin_of
from projector.view import schema_name

CACHED_ORIGINS: Final = 20_000
"""Of the tasks that came last; a few MB."""
_AT_ONCE: Final = 50
"""Creations that are read at a time: they carry payloads."""

_CREATED: Final = """
select originator_id, originator_version, topic, state, notification_id, recorded_at, tenant, kind, queue
from taskledger.task_events where originator_id = any(%b) and originator_version = 1
"""


class Facts:
    """Recorded events as facts. Remembers the origins of tasks that came by."""

    def __init__(self, mapper: EventMapper) -> None:
        self._mapper = mapper
        self._origins: dict[UUID, Origin] = {}

    def of(
        self, connection: Connection[TupleRow], recorded: Sequence[RecordedEvent], passed_over: Parked
    ) -> tuple[list[Fact], FoldStopped | None]:
        """Up to the first event that this release cannot read, unless it is parked. What is no task's
        is left out."""
        events: list[tuple[RecordedEvent, TaskEvent]] = []
        stopped: FoldStopped | None = None
        for event in recorded:
            if known_record(event.topic) is None and not is_task_topic(event.topic):
                continue
            try:
                record = self._mapper.decode(event)
            except (UnknownEvent, UndecodableEvent) as error:
                if passed_over.covers(event):
                    continue
                stopped = FoldStopped(event.id, str(error))
                break
            if isinstance(record, TaskEvent):
                events.append((event, record))
        self._know(connection, [record for _, record in events])
        facts = [
            Fact(event.id, event.recorded_at, record, self._origins[record.originator_id])
            for event, record in events
            if record.originator_id in self._origins
        ]
        for task_id in list(islice(self._origins, max(0, len(self._origins) - CACHED_ORIGINS))):
            del self._origins[task_id]
        return facts, stopped

    def _know(self, connection: Connection[TupleRow], records: Iterable[TaskEvent]) -> None:
        unknown: dict[UUID, None] = {}
        for record in records:
            if isinstance(record, TaskCreated):
                self._origins[record.originator_id] = origin_of(record)
            elif record.originator_id not in self._origins:
                unknown[record.originator_id] = None
        left = iter(unknown)
        while some := list(islice(left, _AT_ONCE)):
            for row in connection.cursor(binary=True).execute(_CREATED.encode(), (some,)).fetchall():
                try:
                    created = self._mapper.decode(RecordedEvent(*row))
                except (UnknownEvent, UndecodableEvent):
                    continue  # parked, or else the fold had stopped there: nothing is known of the task
                if isinstance(created, TaskCreated):
                    self._origins[created.originator_id] = origin_of(created)


def add(
    connection: Connection[TupleRow], tally: Tally, generation: int, added: Mapping[Key, Amounts]
) -> None:
    """In the transaction that the caller has open, which has moved the checkpoint."""
    if not added:
        return
    names = [*tally.keys, *tally.sums]
    types = [*tally.keys.values(), *("int8" for _ in tally.sums)]
    arrays = ", ".join(f"%s::{type_}[]" for type_ in types)
    sums = ", ".join(f"{name} = t.{name} + excluded.{name}" for name in tally.sums)
    # In one order for everybody, though only one writes.
    rows = [(*key, *amounts) for key, amounts in sorted(added.items())]
    columns = [[*column] for column in zip(*rows, strict=True)]
    statement = (
        f"insert into {schema_name(generation)}.{tally.name} as t ({', '.join(names)})"
        f" select * from unnest({arrays})"
        f" on conflict ({', '.join(tally.keys)}) do update set {sums}"
    )
    connection.execute(statement.encode(), columns, prepare=True)
