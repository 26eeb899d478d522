"""Records to stored events and back, and what a reader does with what it cannot read."""

import json
import math
from datetime import UTC, datetime
from typing import Any, ClassVar

import orjson
import pytest
from eventsourcing.persistence import StoredEvent
from hypothesis import given
from hypothesis import strategies as st

from events.codec import EventMapper, data_of, is_task_topic, metadata_of
from events.errors import UndecodableEvent, UnknownEvent
from events.ids import new_task_id, new_uid
from events.queue_events import QueuePaused
from events.records import known_record
from events.task_events import RetryPolicy, TaskCompleted, TaskCreated, TaskError, TaskEvent, TaskFailed
from tests.golden.records import envelope

MAPPER = EventMapper()

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def state_of(record: TaskEvent | QueuePaused) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(MAPPER.to_stored_event(record).state)
    return state


def stored(topic: str, state: bytes) -> StoredEvent:
    return StoredEvent(new_task_id(), 1, topic, state)


def created(**fields: Any) -> TaskCreated:
    values: dict[str, Any] = {"kind": "sum", "payload": {}, **fields}
    return TaskCreated(**envelope(), **values)


@given(payload=json_values)
def test_any_json_payload_survives(payload: Any) -> None:
    record = created(payload=payload)
    assert MAPPER.decode(MAPPER.to_stored_event(record)) == record


def test_a_nul_and_text_beyond_the_basic_plane_survive() -> None:
    record = created(payload={"text": "a\x00b", "emoji": "🜚"})
    assert MAPPER.decode(MAPPER.to_stored_event(record)) == record


def test_what_equals_its_default_is_not_stored() -> None:
    assert set(state_of(created())) == {"event_uid", "kind", "payload"}
    assert set(state_of(created(priority="high", tags=("a",), queue="default"))) == {
        "event_uid",
        "kind",
        "payload",
        "priority",
        "tags",
    }


def test_a_required_field_is_stored_whatever_its_value() -> None:
    assert state_of(created(payload=None))["payload"] is None


def test_a_record_with_nested_models_and_times_survives() -> None:
    record = TaskFailed(
        **envelope(),
        attempt=2,
        cause="error",
        error=TaskError(type="ValueError", message="no", traceback=None),
        retry_at=datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC),
    )
    assert MAPPER.decode(MAPPER.to_stored_event(record)) == record
    policy = created(retry=RetryPolicy(base_seconds=2.0))
    assert state_of(policy)["retry"] == {"base_seconds": 2.0}
    assert MAPPER.decode(MAPPER.to_stored_event(policy)) == policy


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_json_number_is_refused_rather_than_stored_as_null(value: float) -> None:
    for payload in (value, (value,), {"a": [1, {"b": value}]}):
        with pytest.raises(orjson.JSONEncodeError):
            MAPPER.to_stored_event(created(payload=payload))
    with pytest.raises(orjson.JSONEncodeError):
        MAPPER.to_stored_event(created(retry=RetryPolicy(base_seconds=value)))


@pytest.mark.parametrize("value", [{1: 2}, "\ud800", 2**64, object(), {"a"}, b"bytes"])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        MAPPER.to_stored_event(created(payload=value))


def test_a_null_beside_numbers_is_no_reason_to_refuse() -> None:
    record = created(payload={"a": None, "b": 1.5, "c": [None, "null", True]})
    assert MAPPER.decode(MAPPER.to_stored_event(record)) == record


@pytest.mark.parametrize(
    "topic",
    ["TaskTeleported", "TaskCreated2", "", "task_events:TaskCreated", "os.path", "os", "builtins:dict"],
)
def test_an_unknown_topic(topic: str) -> None:
    assert known_record(topic) is None
    with pytest.raises(UnknownEvent):
        MAPPER.decode(stored(topic, b"{}"))


def test_an_event_of_a_later_release() -> None:
    state = b'{"event_uid":"u","kind":"sum","payload":{},"class_version":2}'
    with pytest.raises(UnknownEvent):
        MAPPER.decode(stored("TaskCreated", state))


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b'{"event_uid":"u","kind":"sum"}',
        b'{"event_uid":"u","kind":7,"payload":{}}',
        b'{"event_uid":"u","kind":"sum","payload":{},"surprise":1}',
        b'{"event_uid":"u","kind":"sum","payload":{},"priority":"urgent"}',
        b'{"event_uid":"u","kind":"sum","payload":{},"class_version":"x"}',
        b'{"event_uid":"u","kind":"sum","payload":{},"class_version":null}',
        b'{"event_uid":"u","kind":"sum","payload":{},"class_version":0}',
        b'{"event_uid":"u","kind":"sum","payload":{},"originator_version":2}',
        b"\xff\xfe",
    ],
)
def test_a_state_that_does_not_fit_its_topic(state: bytes) -> None:
    with pytest.raises(UndecodableEvent) as caught:
        MAPPER.decode(stored("TaskCreated", state))
    assert "sum" not in str(caught.value)


class _Renamed(TaskEvent):
    """As of its second version; the first one called the field `old`."""

    TOPIC: ClassVar[str] = "TaskRenamedInATest"
    class_version: ClassVar[int] = 3

    new: str
    added: int = 0

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        state["new"] = state.pop("old")

    @staticmethod
    def upcast_v2_v3(state: dict[str, Any]) -> None:
        state["added"] = len(state["new"])


def test_stored_events_of_every_earlier_version_are_upcast() -> None:
    first = MAPPER.decode(stored(_Renamed.TOPIC, b'{"event_uid":"u","old":"abc"}'))
    second = MAPPER.decode(stored(_Renamed.TOPIC, b'{"event_uid":"u","new":"abc","class_version":2}'))
    third = MAPPER.decode(stored(_Renamed.TOPIC, b'{"event_uid":"u","new":"abc","class_version":3}'))
    assert isinstance(first, _Renamed)
    assert isinstance(second, _Renamed)
    assert isinstance(third, _Renamed)
    assert (first.new, first.added) == ("abc", 3)
    assert (second.new, second.added) == ("abc", 3)
    assert (third.new, third.added) == ("abc", 0)


def test_a_later_version_is_stored_with_its_number() -> None:
    record = _Renamed(**envelope(), new="abc")
    assert json.loads(MAPPER.to_stored_event(record).state)["class_version"] == 3
    assert MAPPER.decode(MAPPER.to_stored_event(record)) == record


def test_an_upcaster_that_cannot_read_the_state() -> None:
    with pytest.raises(UndecodableEvent):
        MAPPER.decode(stored(_Renamed.TOPIC, b'{"event_uid":"u"}'))


def test_only_task_topics_must_be_understood() -> None:
    assert is_task_topic("TaskCreated")
    assert is_task_topic("TaskTeleported")
    assert not is_task_topic("QueuePaused")


def test_data_and_metadata_share_an_event_between_them() -> None:
    record = TaskCompleted(**envelope(), attempt=1, result={"sum": 3}, correlation_id="c")
    assert data_of(record) == {"attempt": 1, "result": {"sum": 3}, "duration": None}
    assert metadata_of(record) == {"event_uid": record.event_uid, "correlation_id": "c"}


def test_records_are_frozen() -> None:
    record = QueuePaused(**envelope(), tenant="t", queue="q")
    with pytest.raises(ValueError, match="frozen"):
        record.queue = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]  # that it fails is the point


def test_stamping_changes_a_copy() -> None:
    record = created()
    uid = new_uid()
    assert record.stamped(event_uid=uid).event_uid == uid
    assert record.event_uid != uid


def test_the_originator_id_may_come_as_text() -> None:
    record = created()
    event = MAPPER.to_stored_event(record)
    as_text = StoredEvent(str(event.originator_id), event.originator_version, event.topic, event.state)
    assert MAPPER.decode(as_text) == record
