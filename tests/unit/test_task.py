"""What follows from each command in each state."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

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
from command_side.errors import AttemptSuperseded, WrongState
from events.errors import CommandRejected
from events.task_events import (
    RetryPolicy,
    TaskDeadLettered,
    TaskError,
    TaskFailed,
    TaskQueued,
    TaskStarted,
)
from tests.unit.aggregate import NOW, TASK_ID, Story, names, seconds

START = StartTask(holder="holder", worker="w")
COMPLETE = CompleteTask(1, {"sum": 3})
ERROR = FailTask(1, "error", TaskError(type="ValueError", message="no"))
LOST = FailTask(1, "lost")

STORIES: dict[str, Callable[[], Story]] = {
    "scheduled": lambda: Story(run_at=NOW + seconds(60)),
    "queued": Story,
    "running": lambda: Story().given(START),
    "retrying": lambda: Story().given(START, ERROR),
    "completed": lambda: Story().given(START, COMPLETE),
    "dead": lambda: Story(max_attempts=1).given(START, ERROR),
    "cancelled": lambda: Story().given(CancelTask()),
    "discarded": lambda: Story().given(CancelTask(), DiscardTask()),
}

OUTCOMES: dict[str, tuple[TaskCommand, dict[str, object]]] = {
    "start": (START, {"queued": ["TaskStarted"]}),
    "complete": (
        COMPLETE,
        {
            "running": ["TaskCompleted"],
            "completed": [],
            "retrying": AttemptSuperseded,
            "dead": AttemptSuperseded,
        },
    ),
    "fail": (
        ERROR,
        {"running": ["TaskFailed"], "retrying": [], "dead": [], "completed": AttemptSuperseded},
    ),
    "lose": (
        LOST,
        {
            "running": ["TaskFailed", "TaskQueued"],
            "retrying": AttemptSuperseded,
            "dead": AttemptSuperseded,
            "completed": AttemptSuperseded,
        },
    ),
    "queue when due": (
        QueueDue(),
        {
            "scheduled": [],
            "queued": [],
            "running": [],
            "retrying": [],
            "completed": [],
            "dead": [],
            "cancelled": [],
            "discarded": [],
        },
    ),
    "cancel": (
        CancelTask(),
        {
            "scheduled": ["TaskCancelled"],
            "queued": ["TaskCancelled"],
            "running": ["TaskCancelRequested"],
            "retrying": ["TaskCancelled"],
            "cancelled": [],
        },
    ),
    "requeue": (RequeueTask(), {"dead": ["TaskRequeued"], "cancelled": ["TaskRequeued"]}),
    "discard": (
        DiscardTask(),
        {"dead": ["TaskDiscarded"], "cancelled": ["TaskDiscarded"], "discarded": []},
    ),
}


@pytest.mark.parametrize("status", STORIES)
@pytest.mark.parametrize("name", OUTCOMES)
def test_every_command_in_every_state(name: str, status: str) -> None:
    story = STORIES[status]()
    assert story.state.status == status
    command, expected = OUTCOMES[name]
    outcome = expected.get(status, WrongState)
    # Just before anything is due: nothing may be queued early.
    early = {"now": NOW - seconds(1)}
    if isinstance(outcome, type):
        assert issubclass(outcome, CommandRejected)
        with pytest.raises(outcome):
            story.when(command, **early)
    else:
        assert names(story.when(command, **early)) == outcome


def test_created_ahead_of_time_is_scheduled_and_past_times_mean_now() -> None:
    assert Story(run_at=NOW + seconds(1)).state.status == "scheduled"
    assert Story(run_at=NOW).state.status == "queued"
    assert Story(run_at=NOW - seconds(1)).state.status == "queued"


def test_a_schedule_is_queued_when_due_and_keeps_its_reason() -> None:
    story = Story(run_at=NOW + seconds(60))
    assert story.when(QueueDue(), now=NOW + seconds(59)) == []
    (event,) = story.when(QueueDue(), now=NOW + seconds(60))
    assert isinstance(event, TaskQueued)
    assert event.reason == "due"


def test_an_attempt_of_an_http_worker_holds_its_own_lease() -> None:
    (event,) = Story().when(StartTask(holder=None, worker="curl"))
    assert isinstance(event, TaskStarted)
    assert (event.attempt, event.holder, event.worker) == (1, f"{TASK_ID}:1", "curl")


def test_attempts_never_restart() -> None:
    story = Story(max_attempts=1).given(START, ERROR, RequeueTask())
    assert (story.state.attempt, story.state.failures) == (1, 0)
    (event,) = story.when(START)
    assert isinstance(event, TaskStarted)
    assert event.attempt == 2


@pytest.mark.parametrize(("failure", "longest"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (12, 3600.0)])
def test_backoff_doubles_up_to_its_cap(failure: int, longest: float) -> None:
    story = Story(max_attempts=20)
    for attempt in range(1, failure):
        story.given(START, replace(ERROR, attempt=attempt)).given(QueueDue(), at=NOW + seconds(4000))
    (event,) = story.given(START).when(replace(ERROR, attempt=failure, jitter=1.0))
    assert isinstance(event, TaskFailed)
    assert event.retry_at == NOW + seconds(min(longest, 2.0 ** (failure - 1)))


def test_jitter_scales_the_whole_wait_and_a_policy_of_its_own_is_obeyed() -> None:
    story = Story(retry=RetryPolicy(base_seconds=10.0, cap_seconds=15.0)).given(START)
    (event,) = story.when(replace(ERROR, jitter=0.25))
    assert isinstance(event, TaskFailed)
    assert event.retry_at == NOW + seconds(2.5)


def test_the_last_failure_is_death_in_the_same_append() -> None:
    story = Story(max_attempts=2).given(START, ERROR).given(QueueDue(), at=NOW + seconds(10))
    failed, dead = story.given(START).when(replace(ERROR, attempt=2))
    assert isinstance(failed, TaskFailed)
    assert isinstance(dead, TaskDeadLettered)
    assert failed.retry_at is None
    assert (dead.reason, dead.attempts) == ("attempts_exhausted", 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"retryable": False}, "not_retryable"), ({"cause": "discarded"}, "discarded")],
)
def test_some_failures_are_death_at_once(changes: dict[str, Any], reason: str) -> None:
    _, dead = Story().given(START).when(replace(ERROR, **changes))
    assert isinstance(dead, TaskDeadLettered)
    assert dead.reason == reason


def test_a_loss_beside_others_does_not_count_and_the_next_attempt_is_isolated() -> None:
    story = Story(max_attempts=1).given(START)
    failed, queued = story.when(LOST)
    assert isinstance(failed, TaskFailed)
    assert isinstance(queued, TaskQueued)
    assert (failed.counted, queued.reason) == (False, "lost")
    assert story.given(LOST).state.isolated


def test_a_loss_in_isolation_counts_until_the_task_is_dead() -> None:
    story = Story(max_attempts=2).given(START, LOST, START, replace(LOST, attempt=2))
    assert (story.state.status, story.state.failures, story.state.isolated) == ("retrying", 1, True)
    story.given(QueueDue(), at=NOW + seconds(10)).given(START, replace(LOST, attempt=3))
    assert (story.state.status, story.state.attempt) == ("dead", 3)


def test_another_outcome_ends_the_isolation() -> None:
    story = Story().given(START, LOST, START, replace(ERROR, attempt=2))
    assert not story.state.isolated


@pytest.mark.parametrize("cause", ["retry_later", "handed_back"])
def test_what_the_task_is_not_to_blame_for_is_not_counted(cause: Any) -> None:
    story = Story(max_attempts=1).given(START)
    events = story.when(FailTask(1, cause, retry_in_seconds=30.0))
    failed = events[0]
    assert isinstance(failed, TaskFailed)
    assert not failed.counted
    if cause == "retry_later":
        assert (names(events), failed.retry_at) == (["TaskFailed"], NOW + seconds(30))
    else:
        assert (names(events), failed.retry_at) == (["TaskFailed", "TaskQueued"], None)


@pytest.mark.parametrize("cause", ["error", "timeout", "lost", "retry_later", "handed_back", "discarded"])
def test_any_failure_after_a_cancel_request_is_the_cancellation(cause: Any) -> None:
    story = Story().given(START, CancelTask(by="ops", reason="wrong input"))
    (event,) = story.when(FailTask(1, cause))
    assert names([event]) == ["TaskCancelled"]
    story.given(FailTask(1, cause))
    assert (story.state.status, story.state.cancel_by) == ("cancelled", "ops")
    assert story.when(FailTask(1, cause)) == []


def test_completed_first_wins_over_a_cancel_request() -> None:
    story = Story().given(START, CancelTask())
    assert names(story.when(COMPLETE)) == ["TaskCompleted"]


def test_a_second_cancel_request_changes_nothing() -> None:
    assert Story().given(START, CancelTask()).when(CancelTask()) == []


def test_a_requeue_forgets_the_cancel_request() -> None:
    story = Story().given(START, CancelTask(), LOST, RequeueTask(), START)
    assert not story.state.cancel_requested
    assert names(story.when(replace(ERROR, attempt=2))) == ["TaskFailed"]


def test_an_attempt_that_never_started_is_not_superseded_but_wrong() -> None:
    with pytest.raises(WrongState):
        Story().given(START).when(CompleteTask(2, None))


def test_a_completion_repeated_with_another_result_is_refused() -> None:
    with pytest.raises(WrongState):
        Story().given(START, COMPLETE).when(CompleteTask(1, {"sum": 4}))


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_lost_in_a_child_beside_others_is_forgiven_only_so_often(max_attempts: int) -> None:
    """Its worker was taken along, by another task or from within the child: nobody can tell."""
    story = Story(max_attempts=max_attempts)
    counted: list[bool] = []
    while story.state.status != "dead":
        attempt = story.state.attempt + 1
        due = [QueueDue()] if story.state.status == "retrying" else []
        story.given(*due, START, FailTask(attempt, "lost", beside_others=True, jitter=0.0))
        counted += [event.counted for event in story.events[-2:] if isinstance(event, TaskFailed)]
    assert counted == [False] * (max_attempts + 1) + [True] * max_attempts


def test_a_lost_entry_is_replaced_only_at_the_position_it_was_seen_at() -> None:
    story = Story()
    assert names(story.when(ReplaceEntry(story.state.queued_position))) == ["TaskQueued"]
    assert story.when(ReplaceEntry(story.state.queued_position - 1)) == []


def test_metadata_is_written_only_where_it_differs_from_the_creation() -> None:
    story = Story()
    event = story.when(START, traceparent="00-a", actor="ops", correlation_id="r1")[0]
    assert (event.traceparent, event.actor, event.correlation_id) == ("00-a", "ops", "r1")
    first, second = story.given(START).when(LOST)
    assert (first.event_uid, second.event_uid) == ("uid", "uid.1")
