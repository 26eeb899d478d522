"""Tasks that go ways they must not: I5 and I6."""

from typing import Final

from tests.chaos.bad_histories.flaw import Flaws
from tests.chaos.good_history import LATER, Story

FLAWS: Final = Flaws()
breaks = FLAWS.breaking


@breaks("I5")
def a_second_completion(story: Story) -> None:
    story.complete("plain")


@breaks("I5")
def a_cancellation_after_completion(story: Story) -> None:
    story.event("plain", "TaskCancelled")


@breaks("I5")
def a_dead_task_starts_again(story: Story) -> None:
    story.start("dead", 2)


@breaks("I5")
def a_completed_task_is_requeued(story: Story) -> None:
    story.event("plain", "TaskRequeued")


@breaks("I5")
def a_cancelled_task_starts(story: Story) -> None:
    story.start("cancelled")


@breaks("I6")
def a_gap_in_the_versions(story: Story) -> None:
    story.amend_event("unkeyed", "TaskCompleted", version=4)


@breaks("I6")
def a_version_given_twice(story: Story) -> None:
    story.amend_event("unkeyed", "TaskCompleted", version=2)


@breaks("I6")
def an_attempt_left_out(story: Story) -> None:
    story.submit("skips", "mark-skips")
    story.work("skips", 2)


@breaks("I6")
def an_attempt_number_used_twice(story: Story) -> None:
    story.amend_event("flaky", "TaskStarted", data={"attempt": 2})
    story.amend_event("flaky", "TaskCompleted", data={"attempt": 2})
    story.effects = [e for e in story.effects if (e.task, e.attempt) != ("flaky", 3)]


@breaks("I6")
def a_superseded_attempt_completes_the_task(story: Story) -> None:
    story.amend_event("flaky", "TaskCompleted", data={"attempt": 1})


@breaks("I6")
def two_workers_start_the_same_task(story: Story) -> None:
    story.submit("shared", "mark-shared")
    story.start("shared")
    story.start("shared", 2)


@breaks("I6")
def a_task_dies_before_its_attempts_are_used_up(story: Story) -> None:
    story.submit("early", "mark-early", max_attempts=2)
    story.start("early")
    story.die("early")


@breaks("I6")
def a_task_is_retried_beyond_its_attempts(story: Story) -> None:
    story.submit("late", "mark-late", max_attempts=1)
    story.start("late")
    story.event("late", "TaskFailed", attempt=1, cause="error", retry_at=LATER)


@breaks("I6")
def a_failure_without_its_consequence(story: Story) -> None:
    story.submit("torn", "mark-torn")
    story.start("torn")
    story.event("torn", "TaskFailed", attempt=1, cause="lost", counted=False)


@breaks("I6")
def a_failure_torn_from_its_consequence(story: Story) -> None:
    story.submit("torn", "mark-torn", max_attempts=1)
    story.submit("between", "mark-between")
    story.start("torn")
    story.event("torn", "TaskFailed", attempt=1, cause="error")
    story.work("between")
    story.event("torn", "TaskDeadLettered", reason="attempts_exhausted", attempts=1)


@breaks("I6")
def a_first_loss_is_counted(story: Story) -> None:
    story.amend_event("flaky", "TaskFailed", data={"counted": True})


@breaks("I6")
def a_failure_after_a_cancel_request_is_retried(story: Story) -> None:
    story.submit("stubborn", "mark-stubborn")
    story.start("stubborn")
    story.command("stubborn", "cancel", lambda: story.event("stubborn", "TaskCancelRequested"))
    story.event("stubborn", "TaskFailed", attempt=1, cause="error", retry_at=LATER)


@breaks("I6")
def a_scheduled_task_starts_without_being_queued(story: Story) -> None:
    story.submit("hasty", "mark-hasty", scheduled=True, run_at=LATER)
    story.work("hasty")
