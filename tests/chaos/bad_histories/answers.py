"""Answers and log do not go together: I1 to I4."""

from typing import Final

from tests.chaos.bad_histories.flaw import Flaws
from tests.chaos.evidence import KeyRow
from tests.chaos.good_history import Story

FLAWS: Final = Flaws()
breaks = FLAWS.breaking


@breaks("I1")
def an_acknowledged_task_is_gone(story: Story) -> None:
    story.forget("unkeyed")


@breaks("I1")
def an_acknowledged_task_is_another_one(story: Story) -> None:
    story.amend("submit", "ok", "unkeyed", task="plain", token=None)


@breaks("I1")
def a_task_was_acknowledged_at_a_position_that_is_not_its_own(story: Story) -> None:
    story.amend("submit", "ok", "unkeyed", token="1.abcdefgh")


@breaks("I1")
def an_acknowledged_requeue_is_gone(story: Story) -> None:
    story.forget("revived", beyond_version=4)


@breaks("I1")
def an_acknowledged_cancellation_left_the_task_running(story: Story) -> None:
    story.amend("cancel", "ok", "cancelled", value={"status": "running", "version": 2, "attempt": 0})


@breaks("I1")
def an_acknowledged_cancellation_has_no_effect(story: Story) -> None:
    told = {"status": "completed", "version": 3, "attempt": 1}
    op = story.ask("client", "cancel", task="plain")
    story.answer(op, "ok", value=told)


@breaks("I1")
def a_completion_was_acknowledged_to_the_wrong_attempt(story: Story) -> None:
    op = story.ask("zombie", "complete", task="outside", value={"attempt": 1})
    story.answer(op, "ok", value=story.told("outside"))


@breaks("I1")
def an_attempt_was_handed_out_that_the_log_never_started(story: Story) -> None:
    op = story.ask("other", "claim", value={"worker": "other"})
    story.answer(op, "ok", value={"tasks": [{"id": "outside", "attempt": 3}]})


@breaks("I1", "I3", "I4")
def an_acknowledged_batch_lacks_a_task(story: Story) -> None:
    story.forget("b")


@breaks("I2")
def a_task_that_nobody_asked_for(story: Story) -> None:
    story.create("ghost", "mark-ghost")
    story.work("ghost")


@breaks("I2")
def a_refused_task_is_in_the_log(story: Story) -> None:
    story.create("refused", "mark-refused")
    story.work("refused")


@breaks("I2")
def a_task_of_another_kind_than_asked_for(story: Story) -> None:
    story.amend_event("plain", "TaskCreated", data={"kind": "slow"})


@breaks("I2")
def a_requeue_that_nobody_asked_for(story: Story) -> None:
    story.event("dead", "TaskRequeued")
    story.work("dead", 2)


@breaks("I2")
def a_cancellation_that_nobody_asked_for(story: Story) -> None:
    story.submit("bystander", "mark-bystander")
    story.event("bystander", "TaskCancelled")


@breaks("I2")
def a_discard_that_was_refused(story: Story) -> None:
    op = story.ask("client", "discard", task="dead")
    story.event("dead", "TaskDiscarded")
    story.answer(op, "fail", value="wrong_state")


@breaks("I2")
def an_outside_task_that_no_worker_completed(story: Story) -> None:
    story.submit("outside2", "outside-2", kind="outside")
    story.start("outside2", runs=False)
    story.complete("outside2")


@breaks("I3")
def half_a_batch_of_unknown_outcome(story: Story) -> None:
    story.forget("e")


@breaks("I3")
def a_batch_torn_apart_by_another_event(story: Story) -> None:
    story.ask("client", "batch", value={"marks": ["mark-f", "mark-g"]})
    story.create("f", "mark-f")
    story.event("f", "TaskStarted", attempt=1)
    story.create("g", "mark-g")
    story.run("f", 1)
    story.complete("f")
    story.work("g")


@breaks("I3")
def a_batch_in_another_order(story: Story) -> None:
    story.ask("client", "batch", value={"marks": ["mark-f", "mark-g"]})
    story.create("g", "mark-g")
    story.create("f", "mark-f")
    story.work("f")
    story.work("g")


@breaks("I4")
def a_key_that_made_two_tasks(story: Story) -> None:
    story.create("twin", "mark-retried")
    story.work("twin")
    op = story.ask("client", "submit", key="key-retried", value={"mark": "mark-retried", "kind": "mark"})
    story.answer(op, "ok", task="twin", value={"replayed": True})


@breaks("I4")
def an_intended_task_that_became_two(story: Story) -> None:
    story.create("twin", "mark-recovered")
    story.work("twin")


@breaks("I4")
def a_key_that_the_log_forgot(story: Story) -> None:
    story.keys = [row for row in story.keys if row.key != "key-plain"]


@breaks("I4")
def a_key_stored_twice(story: Story) -> None:
    story.keys.append(story.keys[0])


@breaks("I4")
def a_key_of_a_task_that_is_not_in_the_log(story: Story) -> None:
    story.keys.append(KeyRow("default", "create", "key-vanished", ["vanished"]))


@breaks("I4")
def a_repeat_answered_as_if_it_were_new(story: Story) -> None:
    op = story.ask("client", "submit", key="key-plain", value={"mark": "mark-plain", "kind": "mark"})
    story.answer(op, "ok", task="plain", value={"replayed": False})
