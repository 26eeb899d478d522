"""TaskRow <-> the columns of `tasks`: one table for writing, reading back and comparing. Sealed text goes
from the log to the columns as it is: the projector holds no key."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pydantic import BaseModel

from events.envelopes import column_of, is_envelope, unpack
from events.task_events import RetryPolicy, TaskError
from events.task_state import TaskState
from projector.fold import TaskRow

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    value: Callable[[TaskRow], Any]


def text(value: str | None) -> str | None:
    """PostgreSQL's text cannot hold NUL. The edges refuse it; what got into the log all the same must
    not stop the projector."""
    return value if value is None or "\0" not in value else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _plain(name: str, type_: str) -> Column:
    return Column(name, type_, lambda row: getattr(row.state, name))


def _text(name: str) -> Column:
    return Column(name, "text", lambda row: text(getattr(row.state, name)))


def _retry(row: TaskRow) -> bytes | None:
    return None if row.state.retry is None else _model(row.state.retry)


def _payload(row: TaskRow) -> bytes:
    sealed = row.state.sealed_payload
    return orjson.dumps(row.state.payload) if sealed is None else column_of(sealed)


def _result(row: TaskRow) -> bytes | None:
    if row.state.sealed_result is not None:
        return column_of(row.state.sealed_result)
    return None if row.state.result is None else orjson.dumps(row.state.result)


def _error(row: TaskRow) -> bytes | None:
    if row.state.sealed_error is not None:
        return column_of(row.state.sealed_error)
    return None if row.state.error is None else _model(row.state.error)


def _model(model: BaseModel) -> bytes:
    return orjson.dumps(model.model_dump())


AT_INSERT: Final = (
    _plain("id", "uuid"),
    Column("created_position", "int8", lambda row: row.created_position),
    _plain("created_at", "timestamptz"),
    _text("kind"),
    _text("queue"),
    _text("tenant"),
    _text("priority"),
    Column("tags", "text[]", lambda row: [text(tag) for tag in row.state.tags]),
    Column("payload", "bytea", _payload),
    _plain("max_attempts", "int8"),
    _plain("timeout_seconds", "float8"),
    Column("retry", "bytea", _retry),
    _plain("run_at", "timestamptz"),
    _text("correlation_id"),
    _text("traceparent"),
    _text("actor"),
)
MUTABLE: Final = (
    _plain("version", "int8"),
    _plain("position", "int8"),
    _text("status"),
    _plain("queued_position", "int8"),
    _plain("queued_at", "timestamptz"),
    _plain("due_at", "timestamptz"),
    _plain("attempt", "int8"),
    _plain("failures", "int8"),
    _plain("isolated", "bool"),
    _text("holder"),
    _text("worker"),
    _plain("started_at", "timestamptz"),
    _plain("finished_at", "timestamptz"),
    _plain("cancel_requested", "bool"),
    _text("cancel_by"),
    _text("cancel_reason"),
    Column("result", "bytea", _result),
    Column("error", "bytea", _error),
    _text("cause"),
)
ID: Final = AT_INSERT[0]
COLUMNS: Final = (*AT_INSERT, *MUTABLE)
NAMES: Final = tuple(column.name for column in COLUMNS)
LOADED: Final = tuple(name for name in NAMES if name != "payload")
"""What going on folding needs. The payload is written once and never read back."""


def row_of(values: Row) -> TaskRow:
    """From the LOADED columns. Its payload is None: such a row is for updates only."""
    found = dict(zip(LOADED, values, strict=True))
    created_position: int = found.pop("created_position")
    found["tags"] = tuple(found["tags"])
    found["retry"] = None if found["retry"] is None else RetryPolicy(**orjson.loads(found["retry"]))
    for name in ("result", "error"):
        if is_envelope(found[name]):
            found[f"sealed_{name}"] = unpack(found[name]).text
            found[name] = None
    found["error"] = None if found["error"] is None else TaskError(**orjson.loads(found["error"]))
    found["result"] = None if found["result"] is None else orjson.loads(found["result"])
    return TaskRow(TaskState(payload=None, **found), created_position)


def without_payload(row: TaskRow) -> TaskRow:
    """As row_of() would give it, without asking. dataclasses.replace() takes 15 µs, this one."""
    state = object.__new__(TaskState)
    state.__dict__.update(row.state.__dict__, payload=None, sealed_payload=None)
    return TaskRow(state, row.created_position)


def values_of(row: TaskRow, columns: Sequence[Column] = COLUMNS) -> list[Any]:
    return [column.value(row) for column in columns]


PRIVATE: Final = frozenset(
    (
        *(column.name for column in COLUMNS if column.type == "bytea"),
        *("correlation_id", "traceparent", "actor", "cancel_by", "cancel_reason", "changed_by", "reason"),
    )
)
"""What clients and handlers have written: no report shows it."""
_LONGEST: Final = 80


def told(name: str, found: object, expected: object) -> str:
    """How a report tells that a column is not what the log says."""
    if name in PRIVATE:
        return "is not what the log says"
    return f"is {_cut(found)}, the log says {_cut(expected)}"


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
