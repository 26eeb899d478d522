"""Everything that can happen to a task. The stored form of each version lies in tests/golden."""

from datetime import datetime
from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict

from events.records import EventRecord
from events.tenants import DEFAULT_TENANT

Priority = Literal["high", "normal", "low"]
FailureCause = Literal["error", "timeout", "lost", "retry_later", "handed_back", "discarded"]
QueuedReason = Literal["due", "retry", "lost", "handed_back"]
DeadReason = Literal["attempts_exhausted", "not_retryable", "discarded"]


class TaskError(BaseModel):
    """What went wrong in an attempt, as the handler or the worker saw it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    message: str
    traceback: str | None = None


ERASED_ERROR: Final = TaskError(
    type="Erased", message="the data that the task was about was erased before it could run"
)
"""Why a task ends whose payload nobody can read any more."""


class RetryPolicy(BaseModel):
    """Exponential backoff with full jitter: the n-th counted failure waits a random time in
    [0, min(cap, base × 2ⁿ⁻¹)] seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_seconds: float = 1.0
    cap_seconds: float = 3600.0


class TaskEvent(EventRecord):
    """Root of the task's events. Followers stop at a `Task…` topic they do not know."""


class PrivateEvent(TaskEvent):
    """One field of it holds somebody's text, which may be encrypted: see events.vault."""

    PRIVATE: ClassVar[str]
    """That field's name."""

    sealed: str | None = None
    """Its value, encrypted: see events.envelopes. The field itself says nothing then."""


class TaskCreated(PrivateEvent):
    """Submitted. `payload` is the client's JSON as sent; `scheduled` tells that `run_at` lay ahead
    of the database's clock when this was appended, so that no reader has to compare clocks."""

    TOPIC: ClassVar[str] = "TaskCreated"
    PRIVATE: ClassVar[str] = "payload"

    kind: str
    payload: Any
    queue: str = "default"
    priority: Priority = "normal"
    run_at: datetime | None = None
    scheduled: bool = False
    max_attempts: int = 5
    timeout_seconds: float = 300.0
    retry: RetryPolicy | None = None
    tags: tuple[str, ...] = ()
    tenant: str = DEFAULT_TENANT


class TaskStarted(TaskEvent):
    """An attempt began. (task, attempt) is the fencing token for whatever the attempt does."""

    TOPIC: ClassVar[str] = "TaskStarted"

    attempt: int
    holder: str
    """Whose lease covers the attempt: a worker process, or `task:attempt` for an HTTP claim."""
    worker: str
    """The worker's own name, for people."""


class TaskCompleted(PrivateEvent):
    TOPIC: ClassVar[str] = "TaskCompleted"
    PRIVATE: ClassVar[str] = "result"

    attempt: int
    result: Any = None
    duration: float | None = None
    """Seconds the handler ran, by the worker's monotonic clock; None from workers that do not say."""


class TaskFailed(PrivateEvent):
    """An attempt ended without a result. `retry_at` is None when the next event says what follows."""

    TOPIC: ClassVar[str] = "TaskFailed"
    PRIVATE: ClassVar[str] = "error"

    attempt: int
    cause: FailureCause
    error: TaskError | None = None
    counted: bool = True
    retry_at: datetime | None = None


class TaskQueued(TaskEvent):
    """Waiting for a worker again; its position is the task's new place in the stream."""

    TOPIC: ClassVar[str] = "TaskQueued"

    reason: QueuedReason


class TaskDeadLettered(TaskEvent):
    TOPIC: ClassVar[str] = "TaskDeadLettered"

    reason: DeadReason
    attempts: int


class TaskCancelRequested(PrivateEvent):
    TOPIC: ClassVar[str] = "TaskCancelRequested"
    PRIVATE: ClassVar[str] = "reason"

    by: str | None = None
    reason: str | None = None


class TaskCancelled(PrivateEvent):
    TOPIC: ClassVar[str] = "TaskCancelled"
    PRIVATE: ClassVar[str] = "reason"

    by: str | None = None
    reason: str | None = None


class TaskRequeued(PrivateEvent):
    """Back from dead or cancelled with a new budget of `max_attempts`; attempts go on counting."""

    TOPIC: ClassVar[str] = "TaskRequeued"
    PRIVATE: ClassVar[str] = "reason"

    by: str | None = None
    reason: str | None = None


class TaskDiscarded(PrivateEvent):
    TOPIC: ClassVar[str] = "TaskDiscarded"
    PRIVATE: ClassVar[str] = "reason"

    by: str | None = None
    reason: str | None = None
