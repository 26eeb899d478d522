"""Rows and states -> the JSON that the API promises. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from events.append import RecordedEvent
from events.codec import data_of, is_task_topic, metadata_of
from events.envelopes import Erased
from events.errors import UndecodableEvent, UnknownEvent
from events.position import PositionToken
from events.task_events import TaskError
from events.task_state import TaskState
from events.vault import Decoder, without_erased

Json = dict[str, Any]


def task_of_row(row: Mapping[str, Any], tag: str) -> Json:
    running = row["status"] == "running"
    return {
        "id": row["id"],
        "kind": row["kind"],
        "status": row["status"],
        "queue": row["queue"],
        "priority": row["priority"],
        "tags": row["tags"],
        "payload": _fragment(row["payload"]),
        "result": _fragment(row["result"]),
        "error": _fragment(row["error"]),
        "attempt": row["attempt"],
        "max_attempts": row["max_attempts"],
        "progress": _progress(row["progress"], row["note"]) if running else None,
        "version": row["version"],
        "position": str(PositionToken(row["position"], tag)),
        "created_at": row["created_at"],
        "run_at": row["run_at"],
        "started_at": row["started_at"],
        "finished_at": row["finished_at"],
        "worker": row["worker"],
        "erased_at": row.get("erased_at"),
    }


def task_of_state(state: TaskState, tag: str) -> Json:
    """As the log had it: progress is not in the log. The state's events were opened, see events.vault."""
    error = state.error.model_dump() if isinstance(state.error, TaskError) else state.error
    values = {"payload": state.payload, "result": state.result, "error": error}
    erased = [value for value in values.values() if isinstance(value, Erased)]
    values = {name: None if isinstance(value, Erased) else value for name, value in values.items()}
    return {
        "id": state.id,
        "kind": state.kind,
        "status": state.status,
        "queue": state.queue,
        "priority": state.priority,
        "tags": state.tags,
        **values,
        "attempt": state.attempt,
        "max_attempts": state.max_attempts,
        "progress": None,
        "version": state.version,
        "position": str(PositionToken(state.position, tag)),
        "created_at": state.created_at,
        "run_at": state.run_at,
        "started_at": state.started_at,
        "finished_at": state.finished_at,
        "worker": state.worker,
        "erased_at": next((e.at for e in erased), None),
    }


def event_json(event: RecordedEvent, tag: str, decoder: Decoder) -> Json:
    """An event that this release does not know is shown as it is stored. What is sealed shows if the
    decoder opens it: see events.vault."""
    try:
        record, erased = without_erased(decoder.decode(event))
    except (UnknownEvent, UndecodableEvent):
        data, metadata = _as_stored(event.state), {}
    else:
        data, metadata = data_of(record), metadata_of(record)
        if erased is not None:
            data["erased_at"] = erased.at
    return {
        "position": str(PositionToken(event.id, tag)),
        "version": event.originator_version,
        "type": event.topic,
        "timestamp": event.recorded_at,
        "data": data,
        "metadata": metadata,
    }


def feed_json(event: RecordedEvent, tag: str, decoder: Decoder) -> Json:
    """Beside tasks the log holds other aggregates: their events have no task and no kind."""
    return {
        "task_id": event.originator_id if is_task_topic(event.topic) else None,
        "kind": event.kind or None,
        "queue": event.queue or None,
        **event_json(event, tag, decoder),
    }


def recorded(row: Mapping[str, Any]) -> RecordedEvent:
    task_id: UUID = row["originator_id"]
    at: datetime = row["recorded_at"]
    return RecordedEvent(
        originator_id=task_id,
        originator_version=row["originator_version"],
        topic=row["topic"],
        state=row["state"],
        id=row["position"],
        recorded_at=at,
        tenant=row["tenant"],
        kind=row["kind"],
        queue=row["queue"],
    )


def _as_stored(state: bytes) -> Any:
    try:
        return orjson.loads(state)
    except orjson.JSONDecodeError:
        return None


def _fragment(value: bytes | None) -> orjson.Fragment | None:
    return None if value is None else orjson.Fragment(value)


def _progress(progress: float | None, note: str | None) -> Json | None:
    return None if progress is None and note is None else {"progress": progress, "note": note}
