"""The Task aggregate: decide(state, command) -> events. Pure: no I/O, no clock, no randomness.

An empty answer means that the command's effect holds already; a refusal is a CommandRejected.
"""

from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from command_side.backoff import backoff_seconds
from command_side.commands import (
    CancelTask,
    CompleteTask,
    CreateTask,
    DiscardTask,
    FailTask,
    QueueDue,
    ReplaceEntry,
    RequeueTask,
    StartTask,
    TaskCommand,
)
from command_side.errors import AttemptSuperseded, WrongState
from events.task_events import (
    DeadReason,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskCreated,
    TaskDeadLettered,
    TaskDiscarded,
    TaskEvent,
    TaskFailed,
    TaskQueued,
    TaskRequeued,
    TaskStarted,
)
from events.task_state import TaskState


class Context(NamedTuple):
    """What the edge knows and decide() must not find out for itself."""

    now: datetime
    """The database's clock, as well as the process knows it."""
    uid: str
    """Random. The command's events carry it as event_uid, numbered if there are several."""
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None
    actor: str | None = None


def create(task_id: UUID, command: CreateTask, context: Context, number: int = 0) -> TaskCreated:
    """The task's first event; `number` tells those apart that one request creates."""
    return TaskCreated.trusted(
        originator_id=task_id,
        originator_version=1,
        event_uid=_numbered(context.uid, number),
        correlation_id=context.correlation_id,
        causation_id=context.causation_id,
        traceparent=context.traceparent,
        actor=context.actor,
        kind=command.kind,
        payload=command.payload,
        queue=command.queue,
        priority=command.priority,
        run_at=command.run_at,
        scheduled=command.run_at is not None and command.run_at > context.now,
        max_attempts=command.max_attempts,
        timeout_seconds=command.timeout_seconds,
        retry=command.retry,
        tags=command.tags,
        tenant=command.tenant,
    )


def decide(state: TaskState, command: TaskCommand, context: Context) -> list[TaskEvent]:
    """The events that follow, to be appended at `state.version`, all or none."""
    new = _Events(state, context)
    match command:
        case StartTask():
            _start(state, command, new)
        case CompleteTask():
            _complete(state, command, new)
        case FailTask():
            _fail(state, command, context, new)
        case QueueDue():
            if state.due_at is not None and state.due_at <= context.now:
                new.add(TaskQueued, reason="due" if state.status == "scheduled" else "retry")
        case ReplaceEntry():
            if (state.status, state.queued_position) == ("queued", command.queued_position):
                new.add(TaskQueued, reason="lost")
        case CancelTask():
            _cancel(state, command, new)
        case RequeueTask():
            _requeue(state, command, new)
        case DiscardTask():
            _discard(state, command, new)
    return new.events


def _start(state: TaskState, command: StartTask, new: "_Events") -> None:
    if state.status != "queued":
        raise WrongState(f"the task is {state.status}; only a queued one can start")
    attempt = state.attempt + 1
    holder = command.holder or f"{state.id}:{attempt}"
    new.add(TaskStarted, attempt=attempt, holder=holder, worker=command.worker)


def _complete(state: TaskState, command: CompleteTask, new: "_Events") -> None:
    if state.status == "running" and state.attempt == command.attempt:
        new.add(TaskCompleted, attempt=command.attempt, result=command.result, duration=command.duration)
        return
    if state.status == "completed" and state.attempt == command.attempt:
        if state.result == command.result:
            return
        raise WrongState("the attempt completed already, with another result")
    raise _not_running(state, command.attempt)


def _fail(state: TaskState, command: FailTask, context: Context, new: "_Events") -> None:
    if state.status != "running" or state.attempt != command.attempt:
        if _is_repeat(state, command):
            return
        raise _not_running(state, command.attempt)
    if state.cancel_requested:
        new.add(TaskCancelled, by=state.cancel_by, reason=state.cancel_reason)
        return
    counted = command.cause in ("error", "timeout", "discarded") or (
        command.cause == "lost" and _is_to_blame(state, command)
    )
    failures = state.failures + counted
    dead = _dead_reason(command, exhausted=counted and failures >= state.max_attempts)
    wait: float | None = None
    if dead is None and command.cause == "retry_later":
        wait = command.retry_in_seconds or 0.0
    elif dead is None and counted:
        wait = backoff_seconds(state.retry, failures, command.jitter)
    new.add(
        TaskFailed,
        attempt=command.attempt,
        cause=command.cause,
        error=command.error,
        counted=counted,
        retry_at=None if wait is None else context.now + timedelta(seconds=wait),
    )
    if dead is not None:
        new.add(TaskDeadLettered, reason=dead, attempts=state.attempt)
    elif wait is None:
        new.add(TaskQueued, reason="lost" if command.cause == "lost" else "handed_back")


def _is_to_blame(state: TaskState, command: FailTask) -> bool:
    """Whether the attempt was lost by its own doing. Beside others it need not have been: the next one
    runs alone, in a child of its own, and counts. It is given the benefit of that doubt only as often
    as it may fail: one that takes its whole machine along from its child must end, too."""
    if not state.isolated:
        return False
    return not command.beside_others or state.attempt > state.max_attempts + 1


def _dead_reason(command: FailTask, *, exhausted: bool) -> DeadReason | None:
    if command.cause == "discarded":
        return "discarded"
    if not command.retryable:
        return "not_retryable"
    return "attempts_exhausted" if exhausted else None


def _requeue(state: TaskState, command: RequeueTask, new: "_Events") -> None:
    if state.status not in ("dead", "cancelled"):
        raise WrongState(f"the task is {state.status}; dead and cancelled ones can be requeued")
    new.add(TaskRequeued, by=command.by, reason=command.reason)


def _discard(state: TaskState, command: DiscardTask, new: "_Events") -> None:
    if state.status == "discarded":
        return
    if state.status not in ("dead", "cancelled"):
        raise WrongState(f"the task is {state.status}; dead and cancelled ones can be discarded")
    new.add(TaskDiscarded, by=command.by, reason=command.reason)


def _cancel(state: TaskState, command: CancelTask, new: "_Events") -> None:
    if state.status in ("scheduled", "queued", "retrying"):
        new.add(TaskCancelled, by=command.by, reason=command.reason)
    elif state.status == "running":
        if not state.cancel_requested:
            new.add(TaskCancelRequested, by=command.by, reason=command.reason)
    elif state.status != "cancelled":
        raise WrongState(f"the task is {state.status}; it cannot be cancelled any more")


def _is_repeat(state: TaskState, command: FailTask) -> bool:
    """The same failure of the same attempt again: its effect holds, whatever was decided then."""
    return (
        state.attempt == command.attempt
        and state.status in ("retrying", "queued", "dead", "cancelled")
        and (state.cancel_requested or (state.cause, state.error) == (command.cause, command.error))
    )


def _not_running(state: TaskState, attempt: int) -> AttemptSuperseded | WrongState:
    if attempt > state.attempt:
        return WrongState(f"attempt {attempt} has not started; the task is at attempt {state.attempt}")
    return AttemptSuperseded(attempt, state.attempt)


class _Events:
    """Numbers events, and carries metadata only where it differs from the task's creation."""

    def __init__(self, state: TaskState, context: Context) -> None:
        self.events: list[TaskEvent] = []
        self._state = state
        self._uid = context.uid
        self._metadata = {
            "correlation_id": _unless(context.correlation_id, state.correlation_id),
            "causation_id": context.causation_id,
            "traceparent": _unless(context.traceparent, state.traceparent),
            "actor": _unless(context.actor, state.actor),
        }

    def add(self, cls: type[TaskEvent], **data: Any) -> None:
        n = len(self.events)
        self.events.append(
            cls.trusted(
                originator_id=self._state.id,
                originator_version=self._state.version + n + 1,
                event_uid=_numbered(self._uid, n),
                **self._metadata,
                **data,
            )
        )


def _numbered(uid: str, n: int) -> str:
    return uid if n == 0 else f"{uid}.{n}"


def _unless(value: str | None, same: str | None) -> str | None:
    return None if value == same else value
