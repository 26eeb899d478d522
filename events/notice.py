"""What the notification of a small append says beside the new head, so that whoever is told need not read.

A payload is the new head alone, or the head, how many positions the append took, and a word for each thing
there is to say. Only a hint: notifications get lost, anybody may send one, and large appends carry the head
alone. Whoever takes one at its word must see that it follows on the one before.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from events.append import AppendCommand
from events.ids import as_uuid

MOST_EVENTS: Final = 2
"""Larger appends come under load, where a read for many of them costs less than a word for each event."""

_QUIET: Final = "quiet"
_QUIET_TOPICS: Final = frozenset({"TaskCreated", "TaskStarted"})
_QUEUED: Final = re.compile(r"([1-9])/([a-z0-9_.-]+)/([a-z0-9_.-]+)/([a-z]+)/([0-9a-f]{32})")


class Queued(NamedTuple):
    """A task that the append queued: what its stream entry is made of."""

    queued_position: int
    queue: str
    kind: str
    priority: str
    task_id: UUID


class Notice(NamedTuple):
    """An append at positions `first` to `last`."""

    first: int
    last: int
    queued: Sequence[Queued]
    """All that it queued, in the order of positions."""
    quiet: bool
    """It only created or started tasks: whoever waits to see that says so (events.tracking)."""


def words(commands: Sequence[AppendCommand]) -> str | None:
    """What append_v2 notifies beside the positions, if it stores all of these commands; None where that is
    not known. For at most MOST_EVENTS events."""
    said: list[str] = []
    quiet = True
    number = 0
    for command in commands:
        for stream in command.streams:
            number += len(stream.events)
            if stream.lane is None:
                return None
            if stream.lane:
                task = as_uuid(stream.originator_id).hex
                said.append(f"{number}/{stream.queue}/{stream.kind}/{stream.lane}/{task}")
            quiet = quiet and _QUIET_TOPICS.issuperset(event.topic for event in stream.events)
    if quiet:
        said.append(_QUIET)
    return " ".join(said)


def read(payload: str) -> Notice | None:
    """None where it says no more than that there is something."""
    head, *rest = payload.split(" ")
    if not rest or not head.isdecimal() or not rest[0].isdecimal():
        return None
    last, count = int(head), int(rest[0])
    queued: list[Queued] = []
    quiet = False
    for word in rest[1:]:
        if word == _QUIET:
            quiet = True
        elif (found := _QUEUED.fullmatch(word)) is not None:
            number, queue, kind, lane, task = found.groups()
            queued.append(Queued(last - count + int(number), queue, kind, lane, UUID(task)))
        elif word:
            return None
    return Notice(last - count + 1, last, queued, quiet)


def head(payload: str) -> int | None:
    """The new head; None where the payload is none of ours."""
    first = payload.partition(" ")[0]
    return int(first) if first.isdecimal() else None
