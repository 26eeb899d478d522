"""One history, one state: however it is read, in whatever batches, and in whatever form it was stored."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_side.dispatcher import outstanding
from command_side.dispatcher.outstanding import Row, recall, tasks_before, tasks_to_recall
from command_side.task import Context, create, decide
from events import codec
from events.append import RecordedEvent
from events.errors import CommandRejected
from events.ids import as_uuid
from events.records import EventRecord, known_record
from events.task_events import TaskCreated, TaskFailed, TaskStarted
from events.task_state import SETTLED, TaskState, evolve
from projector import fold as projection
from projector.fold import TaskRow
from projector.rows import LOADED, NAMES, row_of, values_of
from tests.chaos.model import fold as model_fold
from tests.properties.steps import MAPPER, START, creations, logged, next_command, recorded_as, usual


@st.composite
def histories(draw: st.DrawFn) -> list[RecordedEvent]:
    """Of a few tasks, mixed in one log."""
    log: list[RecordedEvent] = []
    states: dict[UUID, TaskState] = {}

    def add(event: EventRecord, kind: str, queue: str) -> None:
        at = START + timedelta(seconds=len(log))
        log.append(recorded_as(event, len(log) + 1, at, kind, queue))
        before = states.get(event.originator_id)
        states[event.originator_id] = evolve(before, event, at=at, position=len(log))

    for n, wanted in enumerate(draw(st.lists(creations(), min_size=1, max_size=3))):
        add(create(UUID(int=n + 1), wanted, Context(START, "uid")), wanted.kind, wanted.queue)
    for pick in draw(st.lists(st.integers(0, 2), max_size=30)):
        state = list(states.values())[pick % len(states)]
        command = draw(next_command(state.status, state.attempt))
        try:
            events = decide(state, command, Context(START + timedelta(days=2 + len(log)), "uid"))
        except CommandRejected:
            continue
        for event in events:
            add(event, state.kind, state.queue)
    return log


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def batches(log: list[RecordedEvent], lengths: list[int]) -> list[list[RecordedEvent]]:
    """The whole log, cut at these lengths over and over."""
    cut: list[list[RecordedEvent]] = []
    start = 0
    while start < len(log):
        cut.append(log[start : start + lengths[len(cut) % len(lengths)]])
        start += len(cut[-1])
    return cut


def replayed(log: list[RecordedEvent]) -> dict[UUID, TaskState]:
    states: dict[UUID, TaskState] = {}
    for event in log:
        task = as_uuid(event.originator_id)
        states[task] = evolve(
            states.get(task), MAPPER.decode(event), at=event.recorded_at, position=event.id
        )
    return states


def projected(log: list[RecordedEvent], lengths: list[int]) -> dict[UUID, TaskState]:
    """By way of the columns that rows are stored in, without the payload, which is never read back."""
    stored: dict[UUID, dict[str, Any]] = {}
    rows: dict[UUID, TaskRow] = {}
    for batch in batches(log, lengths):
        entries = [projection.Entry(e.id, e.recorded_at, MAPPER.decode(e)) for e in batch]
        current = {
            task: row_of([stored[task][name] for name in LOADED])
            for task in projection.needed(entries)
            if task in stored
        }
        changes = projection.fold(entries, current)
        for task, row in {**changes.inserted, **changes.updated}.items():
            stored[task] = dict(zip(NAMES, values_of(row), strict=True))
            rows[task] = row
    return {task: replace(row.state, payload=None) for task, row in rows.items()}


def dispatched(log: list[RecordedEvent], lengths: list[int]) -> dict[UUID, Row]:
    table: dict[UUID, Row] = {}
    checkpoint = 0
    for batch in batches(log, lengths):
        known = tasks_before(batch)
        rows = {task: table[task] for task in known if task in table}
        recalled: dict[UUID, Row] = {}
        for task in tasks_to_recall(batch, known - rows.keys()):
            row = recall([e for e in log if as_uuid(e.originator_id) == task], checkpoint, MAPPER.decode)
            if row is not None:
                recalled[task] = row
        changes = outstanding.fold(rows, batch, MAPPER.decode, recalled)
        assert not changes.poison
        table.update((row.task_id, row) for row in changes.put)
        for task in changes.gone:
            del table[task]
        checkpoint = batch[-1].id
    return table


@usual(examples=150)
@given(log=histories(), lengths=sizes)
def test_every_fold_in_any_batches_tells_the_same(log: list[RecordedEvent], lengths: list[int]) -> None:
    states = replayed(log)

    assert projected(log, lengths) == {task: replace(s, payload=None) for task, s in states.items()}
    assert dispatched(log, lengths) == dispatched(log, [len(log)])
    assert {
        task: (row.state, row.version, row.attempt) for task, row in dispatched(log, lengths).items()
    } == {task: (s.status, s.version, s.attempt) for task, s in states.items() if s.status not in SETTLED}
    models = model_fold(logged(MAPPER.decode(event), event.id) for event in log)
    assert {task: (h.versions[-1].status, len(h.versions)) for task, h in models.items()} == {
        str(task): (s.status, s.version) for task, s in states.items()
    }


class CreatedV3(TaskCreated):
    """As if two releases had changed it: milliseconds once, and labels."""

    class_version: ClassVar[int] = 3

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        if "timeout_ms" in state:
            state["timeout_seconds"] = state.pop("timeout_ms") / 1000

    @staticmethod
    def upcast_v2_v3(state: dict[str, Any]) -> None:
        if "labels" in state:
            state["tags"] = list(state.pop("labels"))


class StartedV2(TaskStarted):
    class_version: ClassVar[int] = 2

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        state["holder"], state["worker"] = state.pop("by")


class FailedV2(TaskFailed):
    class_version: ClassVar[int] = 2

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        state["counted"] = not state.pop("forgiven")


LATER: dict[str, type[EventRecord]] = {
    "TaskCreated": CreatedV3,
    "TaskStarted": StartedV2,
    "TaskFailed": FailedV2,
}
"""Events of a release to come; the histories hold them in any of their forms."""


def _labels(state: dict[str, Any]) -> None:
    if "tags" in state:
        state["labels"] = state.pop("tags")


def _milliseconds(state: dict[str, Any]) -> None:
    _labels(state)
    if "timeout_seconds" in state:
        state["timeout_ms"] = round(state.pop("timeout_seconds") * 1000)


def _by(state: dict[str, Any]) -> None:
    state["by"] = [state.pop("holder"), state.pop("worker")]


def _forgiven(state: dict[str, Any]) -> None:
    state["forgiven"] = not state.pop("counted", True)


DOWNCASTS: dict[tuple[str, int], Callable[[dict[str, Any]], None]] = {
    ("TaskCreated", 1): _milliseconds,
    ("TaskCreated", 2): _labels,
    ("TaskStarted", 1): _by,
    ("TaskFailed", 1): _forgiven,
}


def stored_as(event: RecordedEvent, version: int) -> RecordedEvent:
    """The event in the form of that version of its class, or of the latest one."""
    cls = LATER.get(event.topic)
    if cls is None:
        return event
    version = min(version, cls.class_version)
    state = orjson.loads(event.state)
    if (downcast := DOWNCASTS.get((event.topic, version))) is not None:
        downcast(state)
    if version > 1:
        state["class_version"] = version
    return replace(event, state=orjson.dumps(state))


@usual(examples=100)
@given(log=histories(), lengths=sizes, versions=st.lists(st.integers(1, 3), min_size=1, max_size=12))
def test_events_of_every_earlier_form_fold_to_the_same(
    log: list[RecordedEvent], lengths: list[int], versions: list[int]
) -> None:
    expected = replayed(log), projected(log, lengths), dispatched(log, lengths)
    mixed = [stored_as(event, versions[n % len(versions)]) for n, event in enumerate(log)]

    def known_later(topic: str) -> type[EventRecord] | None:
        return LATER.get(topic) or known_record(topic)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "known_record", known_later)
        assert (replayed(mixed), projected(mixed, lengths), dispatched(mixed, lengths)) == expected
