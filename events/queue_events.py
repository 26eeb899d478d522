"""What can happen to a queue as a whole. Its id derives from tenant and queue: events.ids.queue_id."""

from collections.abc import Iterable
from typing import ClassVar

from events.records import EventRecord


class QueueEvent(EventRecord):
    tenant: str
    queue: str
    by: str | None = None
    reason: str | None = None


class QueuePaused(QueueEvent):
    """From here on no task of the queue starts; those running go on."""

    TOPIC: ClassVar[str] = "QueuePaused"


class QueueResumed(QueueEvent):
    TOPIC: ClassVar[str] = "QueueResumed"


def is_paused(history: Iterable[EventRecord]) -> bool:
    """The fold of a queue's own events, in order."""
    paused = False
    for event in history:
        if isinstance(event, QueuePaused):
            paused = True
        elif isinstance(event, QueueResumed):
            paused = False
    return paused
