"""How an attempt can end, as values, and the command that each becomes. Pure."""

import traceback
from dataclasses import dataclass
from typing import Any, Final, Literal

from command_side.commands import CompleteTask, FailTask
from events.task_events import TaskError
from taskledger.context import Discard, RetryLater, storable

MAX_MESSAGE_CHARACTERS: Final = 2_000
MAX_TRACEBACK_CHARACTERS: Final = 10_000
_MAX_TYPE_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Completed:
    result: Any
    """Plain JSON, checked: see results."""
    duration: float
    """Seconds the handler ran."""
    type: Literal["completed"] = "completed"


@dataclass(frozen=True, slots=True)
class Failed:
    error: TaskError
    retryable: bool = True
    type: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class Postponed:
    """The handler raised RetryLater."""

    seconds: float
    error: TaskError
    type: Literal["postponed"] = "postponed"


@dataclass(frozen=True, slots=True)
class Discarded:
    """The handler raised Discard."""

    error: TaskError
    type: Literal["discarded"] = "discarded"


@dataclass(frozen=True, slots=True)
class TimedOut:
    seconds: float
    type: Literal["timed_out"] = "timed_out"


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody asked, and the handler stopped."""

    type: Literal["cancelled"] = "cancelled"


@dataclass(frozen=True, slots=True)
class HandedBack:
    """The worker is stopping."""

    type: Literal["handed_back"] = "handed_back"


@dataclass(frozen=True, slots=True)
class Lost:
    """The child process that ran the attempt ended without an answer."""

    how: str
    beside_others: bool = False
    """Whether more than its child ended: then it need not have been its own doing."""
    type: Literal["lost"] = "lost"


@dataclass(frozen=True, slots=True)
class Superseded:
    """The attempt is not the running one any more: nothing of it is recorded."""

    type: Literal["superseded"] = "superseded"


Outcome = Completed | Failed | Postponed | Discarded | TimedOut | Cancelled | HandedBack | Lost | Superseded


def command_of(outcome: Outcome, attempt: int, jitter: float) -> CompleteTask | FailTask | None:
    """What to append for the attempt; None where there is nothing to say. `jitter` lies in [0, 1]."""
    match outcome:
        case Completed():
            return CompleteTask(attempt, outcome.result, outcome.duration)
        case Failed():
            return FailTask(attempt, "error", outcome.error, retryable=outcome.retryable, jitter=jitter)
        case Postponed():
            return FailTask(attempt, "retry_later", outcome.error, retry_in_seconds=outcome.seconds)
        case Discarded():
            return FailTask(attempt, "discarded", outcome.error)
        case TimedOut():
            message = f"the handler ran longer than its {outcome.seconds:g} s"
            return FailTask(attempt, "timeout", TaskError(type="Timeout", message=message), jitter=jitter)
        case Cancelled():
            # decide() turns any failure after a cancel request into TaskCancelled.
            error = TaskError(type="Cancelled", message="the handler was cancelled")
            return FailTask(attempt, "error", error, jitter=jitter)
        case HandedBack():
            error = TaskError(type="HandedBack", message="the worker stopped before the handler was done")
            return FailTask(attempt, "handed_back", error)
        case Lost():
            error = TaskError(type="Lost", message=outcome.how)
            return FailTask(attempt, "lost", error, beside_others=outcome.beside_others, jitter=jitter)
        case Superseded():
            return None


def outcome_of(error: BaseException) -> Outcome:
    """What an exception that left a handler means."""
    match error:
        case RetryLater():
            return Postponed(error.seconds, error_of(error, trace=False))
        case Discard():
            return Discarded(error_of(error, trace=False))
        case _:
            return Failed(error_of(error))


def error_of(error: BaseException, *, trace: bool = True) -> TaskError:
    """The exception as it is stored: bounded, and without what JSON or PostgreSQL cannot hold."""
    return TaskError(
        type=storable(type(error).__qualname__, _MAX_TYPE_CHARACTERS),
        message=storable(_text(error), MAX_MESSAGE_CHARACTERS),
        traceback=_trace(error) if trace else None,
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001  a handler's own __str__ may do anything
        return f"(the message cannot be read: {type(broken).__name__})"


def _trace(error: BaseException) -> str:
    """The end of the traceback, which is where it happened."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as broken:  # noqa: BLE001  formatting calls the exception's own code
        text = f"(the traceback cannot be read: {type(broken).__name__})"
    if len(text) > MAX_TRACEBACK_CHARACTERS:
        text = "…" + text[1 - MAX_TRACEBACK_CHARACTERS :]
    return storable(text, MAX_TRACEBACK_CHARACTERS)
