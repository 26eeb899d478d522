"""Calls a handler: payload in, outcome out. Whatever a handler raises becomes a value here."""

import asyncio
import inspect
import time
from typing import Any

from pydantic import ValidationError

from command_side.worker.outcomes import Completed, Failed, Outcome, error_of, outcome_of
from command_side.worker.results import InvalidResult, checked_result
from events.task_events import TaskError
from taskledger.context import TaskContext
from taskledger.registry import Kind


async def perform(kind: Kind, payload: Any, context: TaskContext) -> Outcome:
    """Runs an `async def` handler. Only a cancellation that was asked for leaves it as an exception."""
    try:
        arguments = _arguments(kind, payload, context)
        began = time.monotonic()
        value = await kind.function(*arguments)
        return _completed(kind, value, began)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return outcome_of(error)  # the handler's own doing
    except BaseException as error:  # noqa: BLE001  SystemExit in a handler is a handler's error
        return _refused(error)


def perform_blocking(kind: Kind, payload: Any, context: TaskContext) -> Outcome:
    """Runs a `def` handler in the calling thread; an `async def` one on a loop of its own."""
    try:
        if inspect.iscoroutinefunction(kind.function):
            return asyncio.run(perform(kind, payload, context))
        arguments = _arguments(kind, payload, context)
        began = time.monotonic()
        value = kind.function(*arguments)
        return _completed(kind, value, began)
    except BaseException as error:  # noqa: BLE001  SystemExit in a handler is a handler's error
        return _refused(error)


class _InvalidPayload(Exception):  # noqa: N818  not an error of ours
    pass


def _arguments(kind: Kind, payload: Any, context: TaskContext) -> tuple[Any, ...]:
    try:
        typed = kind.validate_payload(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = "".join(f"/{part}" for part in first["loc"])
        raise _InvalidPayload(f"the payload{where}: {first['msg']}") from None
    return (typed, context) if kind.takes_context else (typed,)


def _completed(kind: Kind, value: Any, began: float) -> Completed:
    duration = time.monotonic() - began
    return Completed(checked_result(kind, value), round(duration, 6))


def _refused(error: BaseException) -> Outcome:
    match error:
        case _InvalidPayload():
            return Failed(TaskError(type="InvalidPayload", message=str(error)), retryable=False)
        case InvalidResult():
            return Failed(error_of(error, trace=False), retryable=False)
        case _:
            return outcome_of(error)
