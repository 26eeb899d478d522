"""The one fold of a task's events: `evolve(state, event)`. Pure; used by every reader of the log.

| status    | entered by                                                   | left by                                  | a crash leaves                        |
|-----------|--------------------------------------------------------------|------------------------------------------|---------------------------------------|
| scheduled | TaskCreated with scheduled                                   | TaskQueued(due), TaskCancelled           | the sweeper queues it when it is due  |
| queued    | TaskCreated, TaskQueued, TaskRequeued                        | TaskStarted, TaskCancelled               | its stream entry, or the sweeper's    |
| running   | TaskStarted                                                  | TaskCompleted, TaskFailed, TaskCancelled | a silent holder: lost after its lease |
| retrying  | TaskFailed with retry_at                                     | TaskQueued(retry), TaskCancelled         | the sweeper queues it when it is due  |
| completed | TaskCompleted                                                | nothing: final                           | —                                     |
| dead      | TaskDeadLettered (after TaskFailed)                          | TaskRequeued, TaskDiscarded              | —                                     |
| cancelled | TaskCancelled                                                | TaskRequeued, TaskDiscarded              | —                                     |
| discarded | TaskDiscarded                                                | nothing: final                           | —                                     |

TaskFailed without retry_at is always followed, in the same append, by TaskQueued, TaskDeadLettered
or TaskCancelled, so whoever loads the task never sees the state between; a follower whose batch ends
there shows it as retrying until its next batch. TaskCancelRequested keeps a task running.
"""

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from events.errors import UndecodableEvent
from events.records import EventRecord
from events.task_events import (
    Priority,
    RetryPolicy,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskCreated,
    TaskDeadLettered,
    TaskDiscarded,
    TaskError,
    TaskFailed,
    TaskQueued,
    TaskRequeued,
    TaskStarted,
)
from events.tenants import DEFAULT_TENANT

Status = Literal[
    "scheduled", "queued", "running", "retrying", "completed", "dead", "cancelled", "discarded"
]

FINAL: Final[frozenset[Status]] = frozenset({"completed", "discarded"})
"""Nothing follows."""
SETTLED: Final[frozenset[Status]] = frozenset({"completed", "dead", "cancelled", "discarded"})
"""No worker will touch the task unless somebody requeues it. Long polls end here."""

TRANSITIONS: Final[dict[str, tuple[frozenset[str], frozenset[str]]]] = {
    "TaskCreated": (frozenset({"new"}), frozenset({"queued", "scheduled"})),
    "TaskQueued": (
        frozenset({"scheduled", "retrying", "queued"}),
        frozenset({"queued"}),
    ),
    "TaskStarted": (frozenset({"queued"}), frozenset({"running"})),
    "TaskCompleted": (frozenset({"running"}), frozenset({"completed"})),
    "TaskFailed": (frozenset({"running"}), frozenset({"retrying"})),
    "TaskDeadLettered": (frozenset({"retrying"}), frozenset({"dead"})),
    "TaskCancelRequested": (frozenset({"running"}), frozenset({"running"})),
    "TaskCancelled": (
        frozenset({"scheduled", "queued", "running", "retrying"}),
        frozenset({"cancelled"}),
    ),
    "TaskRequeued": (frozenset({"dead", "cancelled"}), frozenset({"queued"})),
    "TaskDiscarded": (frozenset({"dead", "cancelled"}), frozenset({"discarded"})),
}
"""The table above for machines: topic -> (statuses it may follow, statuses it leads to). Checkers and
tests hold histories against it. TaskQueued from queued is the sweeper replacing a lost stream entry."""


@dataclass(frozen=True)
class TaskState:
    """A task as of one event. Everything any reader needs, so that no reader folds in its own way."""

    id: UUID
    version: int
    position: int
    status: Status
    kind: str
    payload: Any
    queue: str
    priority: Priority
    max_attempts: int
    timeout_seconds: float
    created_at: datetime
    queued_position: int
    """Position of the event that last queued it: its id in the stream is `<queued_position>-1`."""
    queued_at: datetime | None = None
    tenant: str = DEFAULT_TENANT
    tags: tuple[str, ...] = ()
    retry: RetryPolicy | None = None
    run_at: datetime | None = None
    """Asked for by the client."""
    due_at: datetime | None = None
    """When the sweeper is to queue it: run_at while scheduled, retry_at while retrying."""
    attempt: int = 0
    """How many attempts ever started. Never restarts, not by a requeue either."""
    failures: int = 0
    """Counted failures since creation or the last requeue; at `max_attempts` the task is dead."""
    isolated: bool = False
    """The last attempt was lost with its worker: the next one runs alone in a child process."""
    holder: str | None = None
    worker: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_requested: bool = False
    cancel_by: str | None = None
    cancel_reason: str | None = None
    result: Any = None
    error: TaskError | None = None
    cause: str | None = None
    """Why the last attempt failed."""
    correlation_id: str | None = None
    traceparent: str | None = None
    actor: str | None = None
    sealed_payload: str | None = None
    """Where it is sealed. `payload` is None then, unless whoever folds has opened the events before."""
    sealed_result: str | None = None
    sealed_error: str | None = None


_DEFAULTS: Final = {f.name: f.default for f in fields(TaskState) if f.default is not MISSING}


def evolve(state: TaskState | None, event: EventRecord, *, at: datetime, position: int = 0) -> TaskState:
    """The task after `event`.

    `at` is the event's `recorded_at` and `position` its place in the log; a writer that has decided
    events which are not stored yet passes its estimate of the database's clock and 0.
    Raises UndecodableEvent where versions do not follow each other: a fold over a gap would lie.
    """
    expected = 1 if state is None else state.version + 1
    if event.originator_version != expected:
        raise UndecodableEvent(
            f"task {event.originator_id}: version {event.originator_version} follows {expected - 1}"
        )
    if state is None:
        return _created(event, at, position)
    after = _after(state, event, at, position)
    after["version"] = event.originator_version
    after["position"] = position
    return _state({**state.__dict__, **after})


def replay(history: Iterable[tuple[EventRecord, datetime, int]]) -> TaskState | None:
    """The task after its whole history of (event, at, position), as evolve() gives it one by one; None
    for none. The states between are not kept: to copy them is most of evolve()'s cost.

    Raises UndecodableEvent as evolve() does. `at` is handed on and never looked at.
    """
    state: TaskState | None = None
    version = position = 0
    for event, at, position in history:
        version += 1
        if event.originator_version != version:
            raise UndecodableEvent(
                f"task {event.originator_id}: version {event.originator_version} follows {version - 1}"
            )
        if state is None:
            state = _created(event, at, position)
        else:
            state.__dict__.update(_after(state, event, at, position))
    if state is not None:
        state.__dict__.update(version=version, position=position)
    return state


def _state(values: dict[str, Any]) -> TaskState:
    """With all fields, defaults included. A frozen dataclass's own __init__ sets each field by a call: it
    takes 6 µs for this many, and dataclasses.replace() 15; this takes one."""
    made = object.__new__(TaskState)
    made.__dict__.update(values)
    return made


def _after(state: TaskState, event: EventRecord, at: datetime, position: int) -> dict[str, Any]:
    """What the event changes, beside version and position."""
    match event:
        case TaskStarted():
            return {
                "status": "running",
                "attempt": event.attempt,
                "holder": event.holder,
                "worker": event.worker,
                "started_at": at,
                "due_at": None,
                "error": None,
                "sealed_error": None,
                "cause": None,
            }
        case TaskCompleted():
            return {
                "status": "completed",
                "result": event.result,
                "sealed_result": event.sealed,
                "holder": None,
                "finished_at": at,
            }
        case TaskFailed():
            return {
                "status": "retrying",
                "failures": state.failures + event.counted,
                "isolated": event.cause == "lost",
                "due_at": event.retry_at,
                "error": event.error,
                "sealed_error": event.sealed,
                "cause": event.cause,
                "holder": None,
            }
        case TaskQueued():
            return {
                "status": "queued",
                "queued_position": position,
                "queued_at": at,
                "due_at": None,
            }
        case TaskDeadLettered():
            return {"status": "dead", "due_at": None, "finished_at": at}
        case TaskCancelRequested():
            return {
                "cancel_requested": True,
                "cancel_by": event.by,
                # Where it was erased, the decoder leaves a mark in its place.
                "cancel_reason": event.reason if isinstance(event.reason, str) else None,
            }
        case TaskCancelled():
            return {"status": "cancelled", "holder": None, "due_at": None, "finished_at": at}
        case TaskRequeued():
            return {
                "status": "queued",
                "queued_position": position,
                "queued_at": at,
                "failures": 0,
                "isolated": False,
                "cancel_requested": False,
                "cancel_by": None,
                "cancel_reason": None,
                "finished_at": None,
            }
        case TaskDiscarded():
            return {"status": "discarded", "finished_at": at}
        case _:
            raise UndecodableEvent(f"{type(event).__name__} cannot follow in a task's history")


def _created(event: EventRecord, at: datetime, position: int) -> TaskState:
    if not isinstance(event, TaskCreated):
        raise UndecodableEvent(f"task {event.originator_id} begins with {type(event).__name__}")
    return _state(
        {
            **_DEFAULTS,
            "id": event.originator_id,
            "version": event.originator_version,
            "position": position,
            "status": "scheduled" if event.scheduled else "queued",
            "kind": event.kind,
            "payload": event.payload,
            "sealed_payload": event.sealed,
            "queue": event.queue,
            "priority": event.priority,
            "max_attempts": event.max_attempts,
            "timeout_seconds": event.timeout_seconds,
            "created_at": at,
            "queued_position": 0 if event.scheduled else position,
            "queued_at": None if event.scheduled else at,
            "tenant": event.tenant,
            "tags": event.tags,
            "retry": event.retry,
            "run_at": event.run_at,
            "due_at": event.run_at if event.scheduled else None,
            "correlation_id": event.correlation_id,
            "traceparent": event.traceparent,
            "actor": event.actor,
        }
    )
