"""What append_v2 is called with: its commands as PostgreSQL's binary arrays."""

from collections.abc import Sequence
from typing import Final

from eventsourcing.persistence import StoredEvent

from events import notice
from events.append import AppendCommand, IdempotencyKey, StreamAppend
from events.binary_arrays import BinaryArray, array


def append_parameters(commands: Sequence[AppendCommand]) -> tuple[BinaryArray | str | None, ...]:
    """The function's arrays, one element an event, then one element a key; and what it is to notify."""
    numbers: list[int] = []
    streams: list[StreamAppend] = []
    events: list[StoredEvent] = []
    keyed: list[tuple[int, IdempotencyKey]] = []
    for number, command in enumerate(commands):
        for stream in command.streams:
            for event in stream.events:
                numbers.append(number)
                streams.append(stream)
                events.append(event)
        if command.key is not None:
            keyed.append((number, command.key))
    return (
        array("int4", numbers),
        array("uuid", [stream.originator_id for stream in streams]),
        array("int8", [event.originator_version for event in events]),
        array("text", [event.topic for event in events]),
        array("bytea", [event.state for event in events]),
        array("text", [stream.tenant for stream in streams]),
        array("text", [stream.kind for stream in streams]),
        array("text", [stream.queue for stream in streams]),
        *_key_parameters(keyed),
        notice.words(commands) if len(numbers) <= notice.MOST_EVENTS else None,
    )


def _key_parameters(keyed: Sequence[tuple[int, IdempotencyKey]]) -> tuple[BinaryArray | None, ...]:
    if not keyed:
        return _NO_KEYS
    return (
        array("int4", [number for number, _ in keyed]),
        array("text", [key.tenant for _, key in keyed]),
        array("text", [key.operation for _, key in keyed]),
        array("text", [key.key for _, key in keyed]),
        array("bytea", [key.fingerprint for _, key in keyed]),
    )


_NO_KEYS: Final = (array("int4", ()), *(array("text", ()),) * 3, array("bytea", ()))
