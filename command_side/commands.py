"""What can be asked of a task. Imperative, frozen, without I/O; decided by command_side.task."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from events.task_events import Priority, RetryPolicy, TaskError
from events.tenants import DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class CreateTask:
    kind: str
    payload: Any
    queue: str = "default"
    priority: Priority = "normal"
    run_at: datetime | None = None
    max_attempts: int = 5
    timeout_seconds: float = 300.0
    retry: RetryPolicy | None = None
    tags: tuple[str, ...] = ()
    tenant: str = DEFAULT_TENANT
    subject: str | None = None
    """Whoever the data is about: it is encrypted under that subject's key, else under the tenant's. In no
    event."""


@dataclass(frozen=True, slots=True)
class StartTask:
    holder: str | None
    """The lease that covers the attempt; None for an HTTP claim, whose holder is `task:attempt`."""
    worker: str


@dataclass(frozen=True, slots=True)
class CompleteTask:
    attempt: int
    result: Any
    duration: float | None = None


@dataclass(frozen=True, slots=True)
class FailTask:
    """An attempt ended without a result, whoever says so: its worker or, for `lost` and late
    `timeout`, the sweeper."""

    attempt: int
    cause: Literal["error", "timeout", "lost", "retry_later", "handed_back", "discarded"]
    error: TaskError | None = None
    retryable: bool = True
    retry_in_seconds: float | None = None
    """Asked for by RetryLater; other causes follow the retry policy."""
    beside_others: bool = False
    """Of an attempt that was lost in a child of its own: something that was not in that child was lost
    with it, and may be to blame."""
    jitter: float = 1.0
    """In [0, 1]: how much of the backoff to wait. Drawn by the edge, so that decide() stays pure."""


@dataclass(frozen=True, slots=True)
class QueueDue:
    """From the sweeper: a schedule or a backoff has run out."""


@dataclass(frozen=True, slots=True)
class ReplaceEntry:
    """From the sweeper: the task is queued and published, yet its stream entry is gone."""

    queued_position: int


@dataclass(frozen=True, slots=True)
class CancelTask:
    by: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RequeueTask:
    by: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class DiscardTask:
    by: str | None = None
    reason: str | None = None


TaskCommand = (
    StartTask | CompleteTask | FailTask | QueueDue | ReplaceEntry | CancelTask | RequeueTask | DiscardTask
)
"""Commands to a task that exists. CreateTask makes one."""
