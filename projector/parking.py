"""Events that the read tables pass over because an operator has said so: `taskledger park` and `unpark`.

An event that cannot be applied stops the projector, and the read tables with it, for all tasks. Parking it
takes one task out instead: from that event on nothing of it is applied, and its row stays as it was, for
what came after it would be folded onto a state that never was. Of a queue only that one event is passed
over, since each tells all there is to tell. Every fold of the read tables (following, rebuild, verify)
asks here, so that all of them pass over the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from events.append import RecordedEvent
from events.codec import is_task_topic
from events.ids import as_uuid
from projector.view import PROJECTION

_SELECT: Final = """
select position, originator_id, originator_version, topic, reason, parked_by, parked_at
from taskledger.parked_events where projection = %s order by position
"""
_INSERT: Final = """
insert into taskledger.parked_events
    (projection, position, originator_id, originator_version, topic, tenant, reason, parked_by)
values (%s, %s, %s, %s, %s, %s, %s, %s)
"""
_DELETE: Final = "delete from taskledger.parked_events where projection = %s and position = %s"


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    position: int
    originator_id: UUID
    version: int
    topic: str
    reason: str
    by: str
    at: datetime

    def __str__(self) -> str:
        return f"position {self.position} ({self.topic} {self.originator_id} version {self.version})"


class Parked:
    """All that are parked, as of one look. Equal to another if it passes over the same."""

    def __init__(self, events: Iterable[ParkedEvent] = ()) -> None:
        self.events = tuple(events)
        self._positions = frozenset(event.position for event in self.events)
        self._tasks: dict[UUID, int] = {}
        for event in self.events:
            if is_task_topic(event.topic):
                first = self._tasks.setdefault(event.originator_id, event.position)
                self._tasks[event.originator_id] = min(first, event.position)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parked) and self._positions == other._positions

    def __hash__(self) -> int:
        return hash(self._positions)

    def covers(self, event: RecordedEvent) -> bool:
        """Whether the read tables pass over the event."""
        if not self._positions:
            return False
        first = self._tasks.get(as_uuid(event.originator_id))
        return event.id in self._positions or (first is not None and event.id > first)

    def without(self, position: int) -> "Parked":
        return Parked(event for event in self.events if event.position != position)


NOTHING: Final = Parked()


def parked(connection: Connection[TupleRow]) -> Parked:
    rows = connection.execute(_SELECT, (PROJECTION,), prepare=True).fetchall()
    return Parked(ParkedEvent(*row) for row in rows) if rows else NOTHING


def add(connection: Connection[TupleRow], event: RecordedEvent, *, reason: str, by: str) -> None:
    """In the caller's transaction, which holds the checkpoints of all generations where they are."""
    which = (event.id, event.originator_id, event.originator_version, event.topic, event.tenant)
    connection.execute(_INSERT, (PROJECTION, *which, reason, by))


def remove(connection: Connection[TupleRow], position: int) -> bool:
    """As add(). Whether it was there."""
    return connection.execute(_DELETE, (PROJECTION, position)).rowcount == 1
