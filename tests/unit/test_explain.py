"""Why a task is not running: each cause, from facts alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, get_args

import pytest

from command_side.commands import (
    CancelTask,
    CompleteTask,
    DiscardTask,
    FailTask,
    RequeueTask,
    StartTask,
)
from events.task_events import TaskError
from query_side.explain.causes import Cause, Code
from query_side.explain.facts import MOST_AHEAD, Ahead, Facts, Failure, Holder, Told, Workers
from query_side.explain.reasons import explain
from tests.e2e.examples import HOWTO
from tests.unit.aggregate import NOW, TASK_ID, Story, seconds

START = StartTask(holder="h", worker="w1")
ERROR = FailTask(1, "error", TaskError(type="ValueError", message="no"), jitter=0.5)
LOST = FailTask(1, "lost")
IDLE = Workers(live=3, of_queue=2, able=1, slots=4, running=1)
ALIVE = Holder(0.4, 15.0, {"host": "here", "pid": 7})
TOLD = Told("ann", "too late", NOW, 30)
FAILED = Failure(1, "error", "ValueError", "no", NOW, 30)


def facts(story: Story, after: float = 1.0, **more: Any) -> Facts:
    """`after` seconds since all that happened; one worker has room and the dispatcher is done."""
    values: dict[str, Any] = {"workers": IDLE, "dispatched_to": 10_000, "holder": ALIVE, **more}
    return Facts(state=story.state, now=NOW + seconds(after), tag="k3v9x0aa", **values)


def retrying() -> Story:
    return Story().given(START, ERROR)


@dataclass(frozen=True)
class Case:
    name: str
    facts: Facts
    codes: Sequence[Code]
    says: str
    """Part of the summary."""
    evidence: dict[str, Any]
    """Part of the first cause's."""


CASES = [
    Case(
        "waits for its time",
        facts(Story(run_at=NOW + seconds(60))),
        ["scheduled"],
        "2026-11-23T12:01:00Z",
        {"until": NOW + seconds(60), "left_seconds": 59.0},
    ),
    Case(
        "is due and just not queued yet",
        facts(Story(run_at=NOW + seconds(60)), after=64),
        ["scheduled"],
        "scheduled",
        {"left_seconds": 0.0},
    ),
    Case(
        "is due, and nobody queues it",
        facts(Story(run_at=NOW + seconds(60)), after=70),
        ["due_not_queued"],
        "10 s ago",
        {"due_at": NOW + seconds(60), "late_seconds": 10.0},
    ),
    Case(
        "backs off",
        facts(retrying(), after=0.0, failures=[FAILED]),
        ["backing_off"],
        "Attempt 1 failed",
        {
            "until": NOW + seconds(0.5),
            "left_seconds": 0.5,
            "failures": 1,
            "max_attempts": 5,
            "last_failure": {
                "attempt": 1,
                "cause": "error",
                "type": "ValueError",
                "message": "no",
                "at": NOW,
                "position": "30.k3v9x0aa",
            },
        },
    ),
    Case(
        "backs off in a paused queue that nobody reads",
        facts(retrying(), after=0.0, paused=TOLD, workers=replace(IDLE, of_queue=0, able=0)),
        ["backing_off", "queue_paused", "no_worker_for_queue"],
        "tried again",
        {"last_failure": None},
    ),
    Case(
        "is in a paused queue",
        facts(Story(), paused=TOLD),
        ["queue_paused"],
        "paused by ann",
        {"queue": "default", "by": "ann", "reason": "too late", "at": NOW, "told_position": "30.k3v9x0aa"},
    ),
    Case(
        "is in a queue paused by nobody known",
        facts(Story(), paused=Told(None, None, NOW, 3)),
        ["queue_paused"],
        "was paused: nothing",
        {"by": None},
    ),
    Case(
        "has been queued since the dispatcher stopped",
        facts(Story(), after=9, dispatched_to=9),
        ["dispatcher_behind"],
        "dispatcher",
        {"queued_position": "10.k3v9x0aa", "dispatched_to": "9.k3v9x0aa", "queued_seconds": 9.0},
    ),
    Case(
        "was queued a moment ago",
        facts(Story(), after=1, dispatched_to=9),
        ["about_to_start"],
        "about to",
        {"queued_seconds": 1.0, "workers": 1, "slots": 4, "running": 1},
    ),
    Case(
        "finds no worker",
        facts(Story(), workers=Workers()),
        ["no_live_worker"],
        "No worker",
        {"kind": "sum", "queue": "default", "live_workers": 0, "reading_the_queue": 0},
    ),
    Case(
        "finds no worker of its queue",
        facts(Story(queue="mail"), workers=Workers(live=3)),
        ["no_worker_for_queue"],
        "mail",
        {"live_workers": 3, "reading_the_queue": 0},
    ),
    Case(
        "finds no worker of its kind",
        facts(Story(), workers=Workers(live=3, of_queue=2)),
        ["no_worker_for_kind"],
        "knows the kind sum",
        {"live_workers": 3, "reading_the_queue": 2},
    ),
    Case(
        "waits for a claim",
        facts(Story(), workers=Workers(), external=True, ahead=Ahead(0, 2, 50)),
        ["awaiting_claim", "behind_others"],
        "over HTTP",
        {"kind": "sum", "queued_seconds": 1.0},
    ),
    Case(
        "will wait for a claim once it is due",
        facts(Story(run_at=NOW + seconds(60)), workers=Workers(), external=True),
        ["scheduled"],
        "scheduled",
        {},
    ),
    Case(
        "is behind one",
        facts(Story(), ahead=Ahead(1, 0, 50)),
        ["behind_others"],
        "1 task comes first",
        {"ahead": 1, "of_higher_priority": 1, "of_the_same_priority": 0, "and_more": False},
    ),
    Case(
        "is behind many, and no slot is free",
        facts(Story(), ahead=Ahead(3, 4, 50), workers=replace(IDLE, running=4)),
        ["behind_others", "workers_busy"],
        "7 tasks come first",
        {"ahead": 7, "of_higher_priority": 3, "of_the_same_priority": 4, "counted_at": "50.k3v9x0aa"},
    ),
    Case(
        "is behind more than are counted",
        facts(Story(), ahead=Ahead(0, MOST_AHEAD + 1, 50)),
        ["behind_others"],
        "More than 10,000",
        {"ahead": 10_000, "of_the_same_priority": 10_000, "and_more": True},
    ),
    Case(
        "is the first, and no slot is free",
        facts(Story(), ahead=Ahead(0, 0, 50), workers=replace(IDLE, running=5)),
        ["workers_busy"],
        "All 4 slots",
        {"workers": 1, "slots": 4, "running": 5},
    ),
    Case(
        "runs alone next, after it was lost",
        facts(Story().given(START, LOST), failures=[replace(FAILED, cause="lost")]),
        ["about_to_start", "runs_alone_next"],
        "about to",
        {},
    ),
    Case(
        "runs",
        facts(Story().given(START), after=2.5),
        ["running"],
        "runs on w1",
        {
            "attempt": 1,
            "worker": "w1",
            "started_at": NOW,
            "running_seconds": 2.5,
            "seen_seconds_ago": 0.4,
            "host": "here",
            "pid": 7,
        },
    ),
    Case(
        "runs at one who claimed it",
        facts(Story().given(START), holder=Holder(5.0, 15.0, None)),
        ["running"],
        "runs on w1",
        {"seen_seconds_ago": 5.0},
    ),
    Case(
        "runs in a worker that fell silent",
        facts(Story().given(START), after=20, holder=replace(ALIVE, silent_seconds=9.0)),
        ["holder_silent"],
        "not seen for 9 s",
        {"seen_seconds_ago": 9.0, "lease_seconds": 15.0, "worker": "w1"},
    ),
    Case(
        "runs in a worker of which nothing is known",
        facts(Story().given(START), holder=None),
        ["holder_silent"],
        "no sign of life",
        {"seen_seconds_ago": None},
    ),
    Case(
        "runs longer than it may",
        facts(Story(timeout_seconds=10).given(START), after=17),
        ["over_its_time", "running"],
        "7 s longer than its 10 s",
        {"timeout_seconds": 10, "running_seconds": 17.0},
    ),
    Case(
        "was asked to stop",
        facts(Story().given(START, CancelTask()), told=TOLD),
        ["cancel_requested"],
        "asked to stop",
        {"by": "ann", "reason": "too late", "told_position": "30.k3v9x0aa", "attempt": 1},
    ),
    Case(
        "was asked to stop, and its worker is gone",
        facts(Story().given(START, CancelTask()), told=TOLD, holder=None),
        ["cancel_requested", "holder_silent"],
        "w1 has not confirmed",
        {},
    ),
    Case(
        "completed",
        facts(Story().given(START, CompleteTask(1, 3))),
        ["completed"],
        "Attempt 1 completed it",
        {"position": "30.k3v9x0aa", "finished_at": NOW, "attempt": 1, "worker": "w1"},
    ),
    Case(
        "was cancelled",
        facts(Story().given(CancelTask()), told=TOLD),
        ["cancelled"],
        "cancelled by ann",
        {"by": "ann", "reason": "too late", "finished_at": NOW},
    ),
    Case(
        "was given up",
        facts(Story().given(CancelTask(), DiscardTask()), told=replace(TOLD, by=None)),
        ["discarded"],
        "It was given up.",
        {"reason": "too late"},
    ),
    Case(
        "used up its attempts",
        facts(
            Story(max_attempts=1).given(START, ERROR),
            failures=[replace(FAILED, position=n) for n in range(5)],
            dead_reason="attempts_exhausted",
        ),
        ["dead_letter"],
        "as often as it may: 1 of 1",
        {"reason": "attempts_exhausted", "attempts": 1, "max_attempts": 1},
    ),
    Case(
        "was hopeless",
        facts(
            Story().given(START, replace(ERROR, retryable=False)),
            failures=[FAILED],
            dead_reason="not_retryable",
        ),
        ["dead_letter"],
        "beyond repair",
        {"reason": "not_retryable", "max_attempts": 5},
    ),
    Case(
        "cannot be read any further",
        facts(Story(), unreadable_position=20),
        ["unreadable_event", "about_to_start"],
        "at 20.k3v9x0aa",
        {"position": "20.k3v9x0aa"},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_cause(case: Case) -> None:
    causes = explain(case.facts)
    assert [cause.code for cause in causes] == case.codes
    assert case.says in causes[0].message
    assert {name: causes[0].evidence.get(name) for name in case.evidence} == case.evidence


def test_every_cause_has_a_case_and_is_documented() -> None:
    codes = set(get_args(Code))
    assert {code for case in CASES for code in case.codes} == codes
    page = (HOWTO / "explain.md").read_text()
    assert {code for code in codes if f"| `{code}` |" in page} == codes


def test_each_message_is_one_sentence() -> None:
    for case in CASES:
        for cause in explain(case.facts):
            assert cause.message[0].isupper() or cause.message[0].isdigit()
            assert cause.message.endswith(".")


def test_a_dead_letter_shows_its_last_three_failures() -> None:
    failures = [replace(FAILED, position=n, message=str(n)) for n in range(5)]
    dead = facts(Story(max_attempts=1).given(START, ERROR), failures=failures)
    (cause,) = explain(dead)
    assert [failure["message"] for failure in cause.evidence["last_failures"]] == ["2", "3", "4"]


def _advice(story: Story, **more: Any) -> list[str | None]:
    return [cause.advice for cause in explain(facts(story, **more))]


def test_advice_says_what_to_do() -> None:
    assert _advice(Story(), paused=TOLD) == ["POST /queues/default/resume lets it go on."]
    assert _advice(Story(), after=1) == [None]
    assert [a is not None for a in _advice(Story(), after=6)] == [True]
    requeue = _advice(Story(max_attempts=1).given(START, ERROR))[0]
    assert requeue == f"POST /tasks/{TASK_ID}/requeue starts it again, /discard gives it up."


def test_a_task_that_was_requeued_is_not_explained_by_what_was_before() -> None:
    again = Story().given(CancelTask(), RequeueTask(), at=NOW + timedelta(0))
    causes: list[Cause] = explain(facts(again, told=TOLD))
    assert [cause.code for cause in causes] == ["about_to_start"]
