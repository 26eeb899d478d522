"""What one append carries and what it answers. Pure: shared by every adapter of the log."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from eventsourcing.persistence import Notification, StoredEvent

from events.tenants import DEFAULT_TENANT


class StreamAppend(NamedTuple):
    """The events one command adds to one aggregate.

    Their versions must run from the stored head + 1 without gaps: that is the expected version.
    """

    originator_id: UUID
    events: Sequence[StoredEvent]
    tenant: str = DEFAULT_TENANT
    kind: str = ""
    queue: str = ""
    lane: str | None = None
    """The priority in which the last of them queues the task; "" where none of them queues one. None: not
    known, so that whoever wants to know has to read them."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """Scoped by tenant and operation. The fingerprint tells a repeat from another request."""

    tenant: str
    operation: str
    key: str
    fingerprint: bytes


class AppendCommand(NamedTuple):
    """The unit of the log: all its streams are stored, or none. A batch is one command of many streams."""

    streams: Sequence[StreamAppend]
    key: IdempotencyKey | None = None

    @property
    def size(self) -> int:
        """Bytes of state, with an allowance for the row around each event."""
        size = 0
        for stream in self.streams:
            for event in stream.events:
                size += len(event.state) + EVENT_OVERHEAD_BYTES
        return size

    @property
    def event_count(self) -> int:
        count = 0
        for stream in self.streams:
            count += len(stream.events)
        return count


EVENT_OVERHEAD_BYTES: Final = 150
"""Measured: tuple header, ids, topic, columns and the two index entries of one event."""


class Appended(NamedTuple):
    """Stored and durable. The command's events have consecutive positions, in the order given."""

    first_position: int
    last_position: int
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Conflict:
    """Nothing of the command is stored: a stream's head is not the expected version."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """Nothing is stored now: the key was used before, by the append at these positions."""

    first_position: int
    last_position: int
    fingerprint: bytes


Outcome = Appended | Conflict | Replayed


@dataclass(frozen=True)
class RecordedEvent(Notification):
    """A stored event as the log keeps it: the library's notification with the append's own columns."""

    recorded_at: datetime
    tenant: str
    kind: str
    queue: str

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> "RecordedEvent":
        """As the constructor, which sets each field of a frozen dataclass by a call, in half the time."""
        made = object.__new__(cls)
        made.__dict__.update(zip(_RECORDED, row, strict=True))
        return made


_RECORDED: Final = tuple(f.name for f in fields(RecordedEvent))


def outcomes_of(commands: Sequence[AppendCommand], row: Sequence[Any]) -> list[Outcome]:
    """One outcome a command, in order. Positions follow from the head the function found under its
    lock, since accepted events are numbered without gaps in the order they were given."""
    head, recorded_at, conflicts, replayed, first, last, fingerprints = row
    refused: dict[int, Outcome] = {number: Conflict() for number in conflicts}
    for i, number in enumerate(replayed):
        refused[number] = Replayed(first[i], last[i], bytes(fingerprints[i]))
    outcomes: list[Outcome] = []
    position = head
    for number, command in enumerate(commands):
        if number in refused:
            outcomes.append(refused[number])
            continue
        count = command.event_count
        outcomes.append(Appended(position + 1, position + count, recorded_at))
        position += count
    return outcomes


def first_events(commands: Sequence[AppendCommand], outcomes: Sequence[Outcome]) -> list[StoredEvent]:
    """The first event of each command that was not stored just now: where to look, after an unknown
    outcome, for what an earlier try may have stored."""
    return [
        command.streams[0].events[0]
        for command, outcome in zip(commands, outcomes, strict=True)
        if not isinstance(outcome, Appended)
    ]


def recognise_own(
    commands: Sequence[AppendCommand], outcomes: Sequence[Outcome], stored: Sequence[RecordedEvent]
) -> list[Outcome]:
    """The outcomes, with Appended for each command that an earlier try has stored.

    After a lost connection the next try meets a conflict, or its own idempotency key, if the first
    one was stored. The stored bytes tell, since they hold our random event_uid; and since a command
    is stored wholly or not at all, with consecutive positions, its first event speaks for the rest.
    """
    found = {(e.originator_id, e.originator_version): e for e in stored}
    resolved: list[Outcome] = []
    for command, outcome in zip(commands, outcomes, strict=True):
        first = command.streams[0].events[0]
        own = found.get((first.originator_id, first.originator_version))
        if (
            isinstance(outcome, Appended)
            or own is None
            or (own.topic, own.state) != (first.topic, first.state)
        ):
            resolved.append(outcome)
        else:
            resolved.append(Appended(own.id, own.id + command.event_count - 1, own.recorded_at))
    return resolved
