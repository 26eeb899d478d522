"""The checker passes what is right, and names what is wrong."""

from dataclasses import replace
from time import process_time

import pytest

from tests.chaos.bad_histories import FLAWS, Flaw
from tests.chaos.checker import INVARIANTS, check
from tests.chaos.evidence import Evidence, FaultRecord, KeyRow, LoggedEvent
from tests.chaos.good_history import Story, good_story
from tests.chaos.history import Entry


def test_a_campaign_without_a_flaw_passes() -> None:
    verdict = check(good_story().evidence())

    assert (verdict.invalid, verdict.violations) == ([], [])
    assert verdict.passed
    counts = verdict.counts
    assert (counts.attempted, counts.acknowledged, counts.recovered) == (18, 13, 3)
    assert (counts.lost, counts.doubled) == (0, 0)


@pytest.mark.parametrize("flaw", FLAWS, ids=[flaw.name for flaw in FLAWS])
def test_a_flaw_is_found_for_what_it_is(flaw: Flaw) -> None:
    story = good_story()
    evidence = flaw.make(story) or story.evidence()
    verdict = check(evidence)

    assert not verdict.passed
    assert verdict.totals.keys() == flaw.breaks, verdict.violations
    assert verdict.invalid == []


def test_every_invariant_has_a_flaw_that_breaks_it_alone() -> None:
    alone = {name for flaw in FLAWS if len(flaw.breaks) == 1 for name in flaw.breaks}
    assert alone == INVARIANTS.keys()


def test_many_violations_of_one_invariant_are_counted_and_not_all_told() -> None:
    story = good_story()
    for n in range(100):
        story.create(f"ghost{n}", f"mark-ghost{n}")
        story.work(f"ghost{n}")
    verdict = check(story.evidence())

    assert verdict.totals == {"I2": 100}
    assert len(verdict.violations) == 21
    assert verdict.violations[-1].detail == "… and 80 more"


def test_lost_and_doubled_tasks_are_counted() -> None:
    story = good_story()
    story.forget("unkeyed")
    story.create("twin", "mark-recovered")
    counts = check(story.evidence()).counts

    assert (counts.lost, counts.doubled) == (1, 1)


def test_a_run_is_invalid_if_a_planned_fault_did_not_fire() -> None:
    faults = [FaultRecord("redis emptied", planned=True, fired=False, at_ns=0, detail="never reached")]
    verdict = check(good_story().evidence(faults=faults))

    assert verdict.invalid == ["the fault redis emptied did not fire: never reached"]
    assert (verdict.violations, verdict.passed) == ([], False)


def test_a_fault_that_was_not_planned_need_not_fire() -> None:
    faults = [FaultRecord("redis emptied", planned=False, fired=False, at_ns=0, detail="")]
    assert check(good_story().evidence(faults=faults)).passed


@pytest.mark.parametrize("kind", ["info", None])
def test_a_run_is_invalid_if_too_much_is_left_unanswered(kind: str | None) -> None:
    story = good_story()
    for _ in range(10):
        op = story.ask("client", "list")
        if kind is not None:
            story.answer(op, "info", value="timeout")

    assert check(story.evidence()).invalid == ["only 54 of 68 operations have a definite answer"]


def test_a_run_without_a_history_is_invalid() -> None:
    assert check(Story().evidence()).invalid == ["the history is empty"]


def test_a_run_that_acknowledged_nothing_is_invalid() -> None:
    story = Story()
    op = story.ask("client", "submit", value={"mark": "m", "kind": "mark"})
    story.answer(op, "fail", value="overloaded")
    assert check(story.evidence()).invalid == ["no task was ever acknowledged"]


def test_a_history_whose_answers_fit_no_question_is_invalid() -> None:
    story = good_story()
    story.history.append(replace(story.history[-1], op=9_999))
    verdict = check(story.evidence())
    assert any("operation 9999, which is not open" in reason for reason in verdict.invalid)


def test_the_time_it_takes_is_linear() -> None:
    small, large = seconds_for(many(1_000)), seconds_for(many(4_000))
    assert large < 12 * max(small, 0.05), "four times as much, with a margin for a busy machine"


def seconds_for(evidence: Evidence) -> float:
    began = process_time()
    assert check(evidence).passed
    return process_time() - began


def many(count: int) -> Evidence:
    """A campaign of that many tasks, each submitted, run, completed and read."""
    story = Story()
    for n in range(count):
        task, at = f"task{n}", 3 * n
        value = {"mark": f"mark{n}", "kind": "mark"}
        read = {"status": "completed", "version": 3, "attempt": 1, "position": at + 3}
        story.history += [
            Entry(0, "client", "invoke", "submit", 2 * n, None, f"key{n}", value, None, 0),
            Entry(0, "client", "ok", "submit", 2 * n, task, f"key{n}", {"replayed": False}, str(at + 1), 0),
            Entry(0, "session", "invoke", "read", 2 * n + 1, task, None, None, str(at + 1), 0),
            Entry(0, "session", "ok", "read", 2 * n + 1, task, None, read, None, 0),
        ]
        story.log += [
            LoggedEvent(at + 1, task, 1, "TaskCreated", {"kind": "mark"}, "default", f"mark{n}"),
            LoggedEvent(at + 2, task, 2, "TaskStarted", {"attempt": 1}, "default", None),
            LoggedEvent(at + 3, task, 3, "TaskCompleted", {"attempt": 1}, "default", None),
        ]
        story.keys.append(KeyRow("default", "create", f"key{n}", [task]))
        story.run(task, 1)
    story.head = 3 * count
    return story.evidence()
