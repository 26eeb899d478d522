"""Followers, readers, handlers and operators see what they must not: I7 to L4."""

from dataclasses import replace
from typing import Any, Final

from tests.chaos.bad_histories.flaw import Flaws
from tests.chaos.evidence import Evidence
from tests.chaos.good_history import DRAINED, FOREIGN, SECOND, Story, snapshot

FLAWS: Final = Flaws()
breaks = FLAWS.breaking


def drained(story: Story, **changes: Any) -> Evidence:
    return story.evidence(drained=replace(DRAINED, **changes))


@breaks("I7")
def a_follower_misses_an_event(story: Story) -> Evidence:
    evidence = story.evidence()
    evidence.tailers["feed"].remove(7)
    return evidence


@breaks("I7")
def a_follower_is_given_an_event_late(story: Story) -> Evidence:
    evidence = story.evidence()
    evidence.tailers["feed"].append(evidence.tailers["feed"].pop(3))
    return evidence


@breaks("I7")
def a_follower_is_given_an_event_twice(story: Story) -> Evidence:
    evidence = story.evidence()
    evidence.tailers["feed"].insert(5, evidence.tailers["feed"][4])
    return evidence


@breaks("I7")
def a_follower_saw_what_was_never_committed(story: Story) -> Evidence:
    evidence = story.evidence()
    evidence.tailers["feed"].append(story.head + 1)
    return evidence


@breaks("I7")
def a_position_given_twice(story: Story) -> None:
    story.other_positions.append(story.other_positions[0])


@breaks("I8")
def a_task_comes_before_one_that_was_acknowledged_before_it_was_asked_for(story: Story) -> None:
    tail = [entry for entry in story.history if entry.task == "outside" or entry.key == "key-outside"]
    story.history = tail + [entry for entry in story.history if entry not in tail]


@breaks("I9")
def a_row_that_lags_behind_its_checkpoint(story: Story) -> Evidence:
    evidence = story.evidence()
    early = snapshot(story.log, evidence.snapshots[2].checkpoint - 1, at_ns=2)
    evidence.snapshots[2] = replace(early, checkpoint=early.checkpoint + 1)
    return evidence


@breaks("I9")
def a_row_that_runs_ahead_of_its_checkpoint(story: Story) -> Evidence:
    evidence = story.evidence()
    evidence.snapshots[2] = replace(evidence.snapshots[2], rows=evidence.snapshots[3].rows)
    return evidence


@breaks("I9")
def a_row_that_is_missing(story: Story) -> Evidence:
    evidence = story.evidence()
    rows = {task: row for task, row in evidence.snapshots[4].rows.items() if task != "plain"}
    evidence.snapshots[4] = replace(evidence.snapshots[4], rows=rows)
    return evidence


@breaks("I9")
def a_row_whose_retry_was_not_folded(story: Story) -> Evidence:
    evidence = story.evidence()
    rows = dict(evidence.snapshots[4].rows)
    rows["flaky"] = {**rows["flaky"], "attempt": 1}
    evidence.snapshots[4] = replace(evidence.snapshots[4], rows=rows)
    return evidence


@breaks("I9")
def a_checkpoint_that_falls(story: Story) -> Evidence:
    evidence = story.evidence()
    evidence.snapshots.append(replace(evidence.snapshots[1], at_ns=9))
    return evidence


@breaks("I9")
def a_read_of_a_state_that_never_was(story: Story) -> None:
    op = story.ask("fresh", "read", task="plain")
    shown = {"status": "dead", "version": 3, "attempt": 1, "position": "4.abcdefgh"}
    story.answer(op, "ok", value=shown)


@breaks("I10")
def a_read_older_than_its_token(story: Story) -> None:
    op = story.ask("fresh", "read", task="plain", token=story.token)
    story.answer(op, "ok", value={"status": "queued", "version": 1, "attempt": 0, "position": 1})


@breaks("I10")
def a_task_not_found_at_its_own_token(story: Story) -> None:
    op = story.ask("fresh", "read", task="plain", token="1.abcdefgh")
    story.answer(op, "fail", value="404")


@breaks("I11")
def a_session_that_goes_back(story: Story) -> None:
    story.read("fresh", "plain")
    op = story.ask("fresh", "read", task="plain")
    story.answer(op, "ok", value={"status": "queued", "version": 1, "attempt": 0, "position": 1})


@breaks("I11")
def a_session_that_loses_a_task(story: Story) -> None:
    story.read("fresh", "plain")
    op = story.ask("fresh", "read", task="plain")
    story.answer(op, "fail", value="404")


@breaks("I12")
def a_stale_effect_is_accepted(story: Story) -> None:
    story.effects = [effect for effect in story.effects if (effect.task, effect.attempt) != ("flaky", 1)]
    story.run("flaky", 1)


@breaks("I12")
def an_attempt_that_runs_twice(story: Story) -> None:
    story.run("plain", 1)


@breaks("I12")
def a_task_that_completes_without_running(story: Story) -> None:
    story.effects = [effect for effect in story.effects if effect.task != "plain"]


@breaks("I12")
def an_attempt_that_runs_without_being_started(story: Story) -> None:
    story.run("cancelled", 1)


@breaks("I13")
def a_list_that_shows_another_tenants_task(story: Story) -> None:
    op = story.ask("fresh", "list")
    story.answer(op, "ok", value={"ids": ["plain", FOREIGN]})


@breaks("I13")
def a_response_that_shows_another_tenants_task(story: Story) -> Evidence:
    evidence = story.evidence()
    evidence.seen_ids.add(FOREIGN)
    return evidence


@breaks("L1")
def a_task_that_stays_open(story: Story) -> Evidence:
    return drained(story, open_tasks=["later"])


@breaks("L1")
def a_task_that_runs_for_ever(story: Story) -> None:
    story.submit("stuck", "mark-stuck")
    story.start("stuck")


@breaks("L1")
def tasks_that_settle_too_late(story: Story) -> Evidence:
    return drained(story, settled_ns=DRAINED.last_heal_ns + 11 * SECOND)


@breaks("L1")
def tasks_that_never_settle(story: Story) -> Evidence:
    return drained(story, settled_ns=None)


@breaks("L2")
def a_projection_that_lags(story: Story) -> Evidence:
    return drained(story, lag=1)


@breaks("L3")
def an_entry_that_nobody_takes_over(story: Story) -> Evidence:
    return drained(story, pending=[{**DRAINED.pending[0], "idle_ms": 5_000}])


@breaks("L4")
def connections_that_leak(story: Story) -> Evidence:
    return drained(story, connections={"worker": (4, 20)})


@breaks("L4")
def files_that_leak(story: Story) -> Evidence:
    return drained(story, fds={"worker-0": (30, 90)})


@breaks("L4")
def a_stream_that_only_grows(story: Story) -> Evidence:
    return drained(story, stream_lengths={"tl:{default}:mark": 3})
