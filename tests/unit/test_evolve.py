"""Every legal history folds; its states are those the table of events.task_state promises."""

from dataclasses import fields
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_side.commands import (
    CancelTask,
    CompleteTask,
    DiscardTask,
    FailTask,
    QueueDue,
    ReplaceEntry,
    RequeueTask,
    StartTask,
    TaskCommand,
)
from command_side.task import decide
from events.codec import EventMapper
from events.envelopes import Erased
from events.errors import CommandRejected, UndecodableEvent
from events.task_events import TaskCancelled, TaskError, TaskQueued
from events.task_state import TRANSITIONS, TaskState, evolve
from tests.unit.aggregate import NOW, TASK_ID, Story, context

CAUSES = st.sampled_from(["error", "timeout", "lost", "retry_later", "handed_back", "discarded"])
ERRORS = st.none() | st.builds(TaskError, type=st.text(max_size=5), message=st.text(max_size=5))
ATTEMPTS = st.integers(1, 6)
COMMANDS: st.SearchStrategy[TaskCommand] = st.one_of(
    st.builds(StartTask, holder=st.none() | st.just("h"), worker=st.just("w")),
    st.builds(CompleteTask, attempt=ATTEMPTS, result=st.none() | st.integers(-(2**53) + 1, 2**53 - 1)),
    st.builds(
        FailTask,
        attempt=ATTEMPTS,
        cause=CAUSES,
        error=ERRORS,
        retryable=st.booleans(),
        jitter=st.floats(0, 1),
    ),
    st.builds(QueueDue),
    st.builds(ReplaceEntry, queued_position=st.integers(0, 50)),
    st.builds(CancelTask, by=st.none() | st.just("ops")),
    st.builds(RequeueTask),
    st.builds(DiscardTask),
)


def test_a_reason_that_was_erased_is_none() -> None:
    """The decoder leaves a mark where it was; a later cancellation must not carry that into the log."""
    story = Story().given(StartTask(holder="h", worker="w"))
    (asked,) = story.when(CancelTask(reason="about Ann"))
    state = evolve(story.state, asked.replaced(reason=Erased(NOW)), at=NOW, position=99)
    assert state.cancel_reason is None
    cancelled = decide(state, FailTask(1, cause="lost"), context())[-1]
    assert isinstance(EventMapper().decode(EventMapper().encode(cancelled)), TaskCancelled)


def test_a_mark_of_something_erased_cannot_be_stored() -> None:
    record = TaskCancelled.trusted(
        originator_id=TASK_ID, originator_version=3, event_uid="u", reason=Erased(NOW)
    )
    with pytest.raises(TypeError):
        EventMapper().encode(record)


@settings(max_examples=300, deadline=None)
@given(
    commands=st.lists(COMMANDS, max_size=25),
    max_attempts=st.integers(1, 4),
    scheduled=st.booleans(),
)
def test_any_commands_lead_through_legal_transitions_only(
    commands: list[TaskCommand], max_attempts: int, scheduled: bool
) -> None:
    run_at = NOW + timedelta(seconds=5) if scheduled else None
    story = Story(max_attempts=max_attempts, run_at=run_at)
    attempts = 0
    for n, command in enumerate(commands):
        before = story.state
        try:
            events = decide(before, command, context(now=NOW + timedelta(hours=n)))
        except CommandRejected:
            continue
        state = before
        for event in events:
            sources, targets = TRANSITIONS[type(event).TOPIC]
            assert state.status in sources
            state = evolve(state, event, at=NOW, position=state.position + 10)
            assert state.status in targets
        story.events.extend(events)
        story.state = state
        assert state.attempt >= attempts
        attempts = state.attempt
        assert state.failures <= state.max_attempts
        assert (state.holder is not None) == (state.status == "running")
        assert (state.due_at is not None) == (state.status in ("scheduled", "retrying"))
    assert replayed(story) == story.state


def replayed(story: Story) -> TaskState:
    """The story's state again, from its stored bytes."""
    mapper = EventMapper()
    state: TaskState | None = None
    for n, event in enumerate(story.events):
        decoded = mapper.decode(mapper.encode(event))
        assert decoded == event
        state = evolve(state, decoded, at=NOW, position=10 * (n + 1))
    assert state is not None
    return state


def test_a_gap_in_the_versions_is_refused() -> None:
    state = Story().state
    event = TaskQueued(originator_id=TASK_ID, originator_version=3, event_uid="u", reason="due")
    with pytest.raises(UndecodableEvent):
        evolve(state, event, at=NOW)


def test_a_history_begins_with_a_creation() -> None:
    event = TaskQueued(originator_id=TASK_ID, originator_version=1, event_uid="u", reason="due")
    with pytest.raises(UndecodableEvent):
        evolve(None, event, at=NOW)


def test_evolve_leaves_the_state_before_alone() -> None:
    before = Story().state
    copy = {f.name: getattr(before, f.name) for f in fields(before)}
    evolve(before, decide(before, StartTask("h", "w"), context())[0], at=NOW, position=7)
    assert {f.name: getattr(before, f.name) for f in fields(before)} == copy
