"""A task's status by its last event alone is the one that the fold gives."""

from uuid import UUID

from hypothesis import given

from events.append import RecordedEvent
from events.counting import Counts, back, forward, status_after
from events.ids import as_uuid
from events.task_events import TaskCreated
from events.task_state import TaskState, evolve
from tests.properties.steps import MAPPER
from tests.properties.test_replay import histories


@given(histories())
def test_the_status_after_each_event(log: list[RecordedEvent]) -> None:
    states = dict[UUID, TaskState]()
    for event in log:
        task = as_uuid(event.originator_id)
        record = MAPPER.decode(event)
        states[task] = evolve(states.get(task), record, at=event.recorded_at, position=event.id)
        scheduled = isinstance(record, TaskCreated) and record.scheduled
        assert status_after(event.topic, scheduled=scheduled) == states[task].status


def test_forward_and_back() -> None:
    before: Counts = Counts({("t", "q", "k", "queued"): 2, ("t", "q", "k", "running"): 1})
    differences = Counts({("t", "q", "k", "running"): -1, ("t", "q", "k", "completed"): 1})
    after = forward(before, differences)
    assert after == {("t", "q", "k", "queued"): 2, ("t", "q", "k", "completed"): 1}
    assert dict(back(after, differences)) == dict(before)
