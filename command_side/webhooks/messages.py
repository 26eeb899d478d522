"""What is sent: one event, and the task as it was then. Pure.

The shape is a contract with receivers: fields are added, never changed. No payload (the receiver's side
has made it, or it is not theirs), no traceback (it tells of our inside), no result beyond a bound.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from events.position import PositionToken
from events.task_state import TaskState


@dataclass(frozen=True, slots=True)
class Shape:
    tasks_url: str
    """Of the query API: `<tasks_url>/<id>` is the task."""
    max_result_bytes: int
    """As JSON; a larger result is left out, as is a larger error message."""


def task_message(
    topic: str, state: TaskState, *, at: datetime, webhook: UUID, tag: str, shape: Shape
) -> bytes:
    """`state` as of the event of this topic, which was recorded `at`."""
    token = str(PositionToken(state.position, tag))
    sealed = {"result": state.sealed_result, "error": state.sealed_error}
    omitted = [name for name, text in sealed.items() if text is not None]
    data: dict[str, Any] = {
        "id": state.id,
        "kind": state.kind,
        "queue": state.queue,
        "tags": state.tags,
        "status": state.status,
        "attempt": state.attempt,
        "version": state.version,
        "position": token,
        "created_at": state.created_at,
        "finished_at": state.finished_at,
        "result": _bounded("result", state.result, omitted, shape),
        "error": _bounded("error", _error(state), omitted, shape),
        "omitted": omitted,
        "url": f"{shape.tasks_url}/{state.id}?min_position={token}",
    }
    return _message(topic, at, webhook, data)


def sample_message(topic: str, position: int, *, at: datetime, webhook: UUID, tag: str) -> bytes:
    return _message(topic, at, webhook, {"position": str(PositionToken(position, tag))})


def _message(topic: str, at: datetime, webhook: UUID, data: dict[str, Any]) -> bytes:
    message = {"type": topic, "timestamp": at, "webhook": webhook, "data": data}
    return orjson.dumps(message, option=orjson.OPT_UTC_Z)


def _error(state: TaskState) -> dict[str, Any] | None:
    error = state.error
    return None if error is None else {"type": error.type, "message": error.message}


def _bounded(name: str, value: Any, omitted: list[str], shape: Shape) -> Any:
    if value is None:
        return None
    encoded = orjson.dumps(value)
    if len(encoded) <= shape.max_result_bytes:
        return orjson.Fragment(encoded)
    omitted.append(name)
    return None
