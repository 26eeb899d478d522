"""The short way from stored events to rows gives what the ordinary way gives, or leaves it to that."""

import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID

import orjson
import pytest
from eventsourcing.persistence import StoredEvent
from hypothesis import given
from hypothesis import strategies as st

from events import plain
from events.codec import EventMapper
from events.envelopes import Envelope
from events.errors import LogError
from events.plain import plain_record
from events.queue_events import QueuePaused
from events.records import EventRecord, known_record
from events.task_events import (
    DeadReason,
    FailureCause,
    Priority,
    QueuedReason,
    RetryPolicy,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskCreated,
    TaskDeadLettered,
    TaskDiscarded,
    TaskError,
    TaskEvent,
    TaskFailed,
    TaskQueued,
    TaskRequeued,
    TaskStarted,
)
from events.task_state import TaskState, evolve, replay
from projector import bulk
from projector.fold import Entry, fold
from projector.rows import COLUMNS, values_of
from tests.golden.records import RECORDS, TASK

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MAPPER = EventMapper()

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
times = st.integers(10**15, 4 * 10**15).map(
    lambda microseconds: datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)
)
errors = st.builds(TaskError, type=texts, message=texts, traceback=st.none() | texts)
seconds = st.floats(0, 1e6)
envelopes = st.builds(
    Envelope,
    st.uuids(),
    st.integers(1, 9),
    st.binary(min_size=12, max_size=12),
    st.just(b"") | st.binary(min_size=17, max_size=60),
)
sealed = st.none() | envelopes.map(lambda found: found.text)
envelope = {
    "originator_id": st.just(TASK),
    "originator_version": st.just(1),
    "event_uid": texts,
    "correlation_id": st.none() | texts,
    "actor": st.none() | texts,
}
why = {"by": st.none() | texts, "reason": st.none() | texts, "sealed": sealed}


def literal(kind: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(get_args(kind))


created = st.builds(
    TaskCreated,
    **envelope,
    kind=texts,
    payload=json_values,
    queue=texts,
    priority=literal(Priority),
    run_at=st.none() | times,
    scheduled=st.booleans(),
    max_attempts=st.integers(1, 100),
    timeout_seconds=seconds,
    retry=st.none() | st.builds(RetryPolicy, base_seconds=seconds, cap_seconds=seconds),
    tags=st.lists(texts, max_size=3).map(tuple),
    tenant=texts,
    sealed=sealed,
)
later = st.one_of(
    st.builds(TaskStarted, **envelope, attempt=st.integers(1, 9), holder=texts, worker=texts),
    st.builds(
        TaskCompleted,
        **envelope,
        attempt=st.integers(1, 9),
        result=json_values,
        duration=st.none() | seconds,
        sealed=sealed,
    ),
    st.builds(
        TaskFailed,
        **envelope,
        attempt=st.integers(1, 9),
        cause=literal(FailureCause),
        error=st.none() | errors,
        counted=st.booleans(),
        retry_at=st.none() | times,
        sealed=sealed,
    ),
    st.builds(TaskQueued, **envelope, reason=literal(QueuedReason)),
    st.builds(TaskDeadLettered, **envelope, reason=literal(DeadReason), attempts=st.integers(1, 9)),
    *(
        st.builds(cls, **envelope, **why)
        for cls in (TaskCancelRequested, TaskCancelled, TaskRequeued, TaskDiscarded)
    ),
)
histories = st.tuples(created, st.lists(later, max_size=8)).map(lambda parts: [parts[0], *parts[1]])


def numbered(events: Sequence[TaskEvent]) -> list[TaskEvent]:
    return [event.model_copy(update={"originator_version": n}) for n, event in enumerate(events, start=1)]


def recorded(n: int) -> datetime:
    return NOW + timedelta(seconds=37 * n, microseconds=n)


def as_postgres_sends(at: datetime) -> bytes:
    return struct.pack("!q", (at - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))


def stored_of(events: Sequence[EventRecord]) -> list[bulk.StoredEvent]:
    return [
        (
            TASK.bytes,
            event.originator_version,
            event.TOPIC,
            MAPPER.encode(event).state,
            n,
            as_postgres_sends(recorded(n)),
        )
        for n, event in enumerate(events, start=1)
    ]


@given(histories)
def test_a_row_of_the_bulk_fold_is_the_row_of_the_ordinary_fold(drawn: list[TaskEvent]) -> None:
    events = numbered(drawn)
    entries = [Entry(n, recorded(n), event) for n, event in enumerate(events, start=1)]
    wanted = dict(zip((c.name for c in COLUMNS), values_of(fold(entries, {}).inserted[TASK]), strict=True))
    stored = stored_of(events)
    state = bulk.plain_state(stored)

    if state is None:
        assert any(rb"\u0000" in (event[3] or b"") for event in stored)
        return
    found = dict(zip((c.name for c in COLUMNS), bulk.row_values(state, 1), strict=True))
    wanted["id"] = wanted["id"].bytes
    for name in ("created_at", "queued_at", "started_at", "finished_at"):
        wanted[name] = None if wanted[name] is None else as_postgres_sends(wanted[name])
    assert found == wanted


@given(histories)
def test_replay_gives_the_state_that_evolve_gives(drawn: list[TaskEvent]) -> None:
    history = [(event, recorded(n), n) for n, event in enumerate(numbered(drawn), start=1)]
    state: TaskState | None = None
    for event, at, position in history:
        state = evolve(state, event, at=at, position=position)
    assert replay(history) == state
    assert replay([]) is None


@pytest.mark.parametrize("record", [record for both in RECORDS.values() for record in both.values()])
def test_what_the_codec_writes_today_is_plain(record: EventRecord) -> None:
    assert both_ways(MAPPER.encode(record)) is not None


SPOILED: Sequence[Any] = (
    "5",
    5,
    5.0,
    True,
    [],
    {},
    "high",
    "2026-01-02T03:04:05Z",
    "2026-01-02T03:04:05+02:00",
    "2026-W01-1T03:04:05+00:00",
)
spoiled_values: st.SearchStrategy[Any] = st.one_of(
    json_values,
    st.sampled_from(SPOILED),
)
field_names = st.sampled_from(
    sorted({name for cls, _ in RECORDS for name in cls.model_fields} | {"class_version", "new"})
)


@given(
    created | later,
    st.dictionaries(field_names, spoiled_values, max_size=2),
    st.sets(field_names, max_size=2),
)
def test_a_state_that_is_not_plain_is_left_to_the_codec(
    event: TaskEvent, changed: Mapping[str, Any], missing: set[str]
) -> None:
    state = orjson.loads(MAPPER.encode(event).state) | changed
    state = {name: value for name, value in state.items() if name not in missing}
    both_ways(StoredEvent(TASK, 1, event.TOPIC, orjson.dumps(state)))


@pytest.mark.parametrize("state", [b"", b"[]", b"1", b"{", b"null", b'"text"', b"\xff", b"{}"])
@pytest.mark.parametrize("topic", ["TaskCreated", "TaskUnheardOf", "Invoice", "a.module:Task"])
def test_what_is_no_state_is_left_to_the_codec(topic: str, state: bytes) -> None:
    assert both_ways(StoredEvent(TASK, 1, topic, state)) is None


def both_ways(stored: StoredEvent) -> EventRecord | None:
    """The plain record, which is that of validation to the last type if there is one."""
    cls = known_record(stored.topic)
    id_ = UUID(str(stored.originator_id))
    short = None if cls is None else plain_record(cls, id_, stored.originator_version, stored.state)
    if short is not None:
        validated = MAPPER.validated(stored)
        assert type(short) is type(validated)
        assert short == validated
        assert {n: type(v) for n, v in short.__dict__.items()} == {
            n: type(v) for n, v in validated.__dict__.items()
        }
        assert short.model_dump() == validated.model_dump()
    elif cls is None:
        with pytest.raises(LogError):
            MAPPER.decode(stored)
    return short


def test_a_class_whose_stored_states_are_changed_is_left_to_the_codec(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = MAPPER.encode(RECORDS[TaskQueued, 1]["full"])
    plain.shape_of.cache_clear()
    monkeypatch.setattr(TaskQueued, "class_version", 2)
    assert plain_record(TaskQueued, TASK, 2, stored.state) is None
    plain.shape_of.cache_clear()


@pytest.mark.parametrize("versions", [[2], [1, 1], [1, 3]])
def test_a_history_that_does_not_go_on_is_not_plain(versions: list[int]) -> None:
    topics: list[type[EventRecord]] = [TaskCreated, TaskQueued]
    events = [
        RECORDS[cls, 1]["minimal"].model_copy(update={"originator_version": n})
        for cls, n in zip(topics, versions, strict=False)
    ]
    assert bulk.plain_state(stored_of(events)) is None


def test_the_history_of_a_queue_is_not_plain() -> None:
    assert bulk.plain_state(stored_of([RECORDS[QueuePaused, 1]["minimal"]])) is None
