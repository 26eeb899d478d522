"""What is known about a task and about all that could hold it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from events.position import PositionToken
from events.task_state import TaskState
from query_side.shapes import Json

MOST_AHEAD: Final = 10_000
"""Tasks ahead are counted up to here in each lane: beyond it the number says little, and counting costs."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that ended without a result."""

    attempt: int
    cause: str
    error_type: str | None
    message: str | None
    at: datetime
    position: int


@dataclass(frozen=True, slots=True)
class Told:
    """What a person or a program asked for: a pause, a cancel, a discard."""

    by: str | None
    reason: str | None
    at: datetime
    position: int


@dataclass(frozen=True, slots=True)
class Holder:
    """The lease of whoever runs the attempt."""

    silent_seconds: float
    lease_seconds: float
    info: Json | None
    """Of a worker process; None for a task that was claimed over HTTP."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Worker processes whose lease has not run out."""

    live: int = 0
    of_queue: int = 0
    """Those that read the task's queue."""
    able: int = 0
    """Those that know its kind as well."""
    slots: int = 0
    """What the able ones may run at once."""
    running: int = 0


@dataclass(frozen=True, slots=True)
class Ahead:
    """Queued tasks of the same queue that come first, as of a checkpoint of the read tables."""

    higher: int
    """Of a higher priority."""
    same: int
    """Of the same, and queued before."""
    position: int


@dataclass(frozen=True, slots=True)
class Facts:
    state: TaskState
    now: datetime
    tag: str
    failures: Sequence[Failure] = ()
    """By rising position."""
    told: Told | None = None
    """By the last event that cancels, asks to cancel, or discards."""
    dead_reason: str | None = None
    unreadable_position: int | None = None
    """Of the first event that this release cannot apply: `state` is the one before it."""
    paused: Told | None = None
    dispatched_to: int = 0
    """The dispatcher has handed on what was queued up to here."""
    workers: Workers = field(default_factory=Workers)
    external: bool = False
    """Workers of the kind claim over HTTP: nobody knows of them before they do."""
    holder: Holder | None = None
    ahead: Ahead | None = None
    """None where there are no read tables to count in."""

    def token(self, position: int) -> str:
        return str(PositionToken(position, self.tag))

    def since(self, at: datetime | None) -> float | None:
        """Seconds until now."""
        return None if at is None else round(max(0.0, (self.now - at).total_seconds()), 3)
