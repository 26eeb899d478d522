"""What holds a task that waits for its time or for a worker. Pure."""

from collections.abc import Iterator
from typing import Final

from query_side.explain.causes import Cause, failure_json, iso, told_json
from query_side.explain.facts import MOST_AHEAD, Facts

DUE_SECONDS: Final = 5.0
"""The dispatcher queues what is due within a second; nobody should have to wait longer for it."""

DISPATCH_SECONDS: Final = 2.0
"""The dispatcher hands on what is queued at once, and stores within a quarter of a second that it has."""
START_SECONDS: Final = 5.0
"""Longer than an idle worker ever needs."""


def waiting(facts: Facts) -> Iterator[Cause]:
    state = facts.state
    if state.status != "queued":
        yield _not_due(facts)
    if facts.paused is not None:
        by = f" by {facts.paused.by}" if facts.paused.by else ""
        yield Cause(
            "queue_paused",
            f"Its queue, {state.queue}, was paused{by}: nothing of it starts.",
            {"queue": state.queue, **told_json(facts, facts.paused)},
            f"POST /queues/{state.queue}/resume lets it go on.",
        )
    if state.status == "queued" and not _is_dispatched(facts):
        yield Cause(
            "dispatcher_behind",
            "The dispatcher has not come to the task yet.",
            {
                "queued_position": facts.token(state.queued_position),
                "dispatched_to": facts.token(facts.dispatched_to),
                "queued_seconds": facts.since(state.queued_at),
            },
            "Is a dispatcher running, and does it reach PostgreSQL and Redis?",
        )
    yield from _hands(facts)
    if state.isolated:
        yield Cause(
            "runs_alone_next",
            "The last attempt was lost with its worker: the next one runs alone in a process of its own.",
            {"last_failure": failure_json(facts, facts.failures[-1]) if facts.failures else None},
        )


def _not_due(facts: Facts) -> Cause:
    state = facts.state
    left = 0.0 if state.due_at is None else (state.due_at - facts.now).total_seconds()
    if left < -DUE_SECONDS:
        return Cause(
            "due_not_queued",
            f"Its time came {-left:.0f} s ago, and the dispatcher has not queued it.",
            {"due_at": state.due_at, "late_seconds": round(-left, 3)},
            "Is a dispatcher running, and does it reach PostgreSQL?",
        )
    until = {"until": state.due_at, "left_seconds": round(max(0.0, left), 3)}
    if state.status == "scheduled":
        return Cause("scheduled", f"It is scheduled for {iso(state.due_at)}.", until)
    failure = failure_json(facts, facts.failures[-1]) if facts.failures else None
    evidence = {
        **until,
        "failures": state.failures,
        "max_attempts": state.max_attempts,
        "last_failure": failure,
    }
    message = f"Attempt {state.attempt} failed; it is tried again at {iso(state.due_at)}."
    return Cause("backing_off", message, evidence)


def _hands(facts: Facts) -> Iterator[Cause]:
    """Who could take it: also of interest for a task whose time has not come."""
    state, workers = facts.state, facts.workers
    found = {
        "kind": state.kind,
        "queue": state.queue,
        "live_workers": workers.live,
        "reading_the_queue": workers.of_queue,
    }
    if facts.external:
        if state.status == "queued":
            message = f"Workers of its kind, {state.kind}, claim over HTTP: none has claimed it yet."
            yield Cause(
                "awaiting_claim",
                message,
                {"kind": state.kind, "queue": state.queue, "queued_seconds": facts.since(state.queued_at)},
                f"POST /queues/{state.queue}/claim takes it.",
            )
            yield from _behind(facts)
        return
    if workers.live == 0:
        yield Cause("no_live_worker", "No worker is alive.", found, "Start one: taskledger worker.")
    elif workers.of_queue == 0:
        yield Cause(
            "no_worker_for_queue",
            f"No live worker reads its queue, {state.queue}.",
            found,
            "Start one with the queue in TASKLEDGER__WORKER__QUEUES.",
        )
    elif workers.able == 0:
        yield Cause(
            "no_worker_for_kind",
            f"No live worker that reads the queue {state.queue} knows the kind {state.kind}.",
            found,
            "Start one whose TASKLEDGER__HANDLERS define the kind.",
        )
    elif state.status == "queued":
        yield from _in_line(facts)


def _in_line(facts: Facts) -> Iterator[Cause]:
    state, workers = facts.state, facts.workers
    hands = {"workers": workers.able, "slots": workers.slots, "running": workers.running}
    behind = list(_behind(facts))
    yield from behind
    if workers.running >= workers.slots:
        yield Cause(
            "workers_busy",
            f"All {workers.slots} slots of the workers that know its kind are taken.",
            hands,
            "More workers, or a higher TASKLEDGER__WORKER__CONCURRENCY, would start it sooner.",
        )
    elif not behind and facts.paused is None and _is_dispatched(facts):
        seconds = facts.since(state.queued_at) or 0.0
        slow = "That takes long: do dispatcher and workers reach Redis? Their readiness says."
        yield Cause(
            "about_to_start",
            "Nothing holds it: a worker is about to take it.",
            {**hands, "queued_seconds": seconds, "queued_position": facts.token(state.queued_position)},
            slow if seconds > START_SECONDS else None,
        )


def _is_dispatched(facts: Facts) -> bool:
    """Or may be: what was queued just now need not be stored as handed on."""
    soon = (facts.since(facts.state.queued_at) or 0.0) < DISPATCH_SECONDS
    return soon or facts.dispatched_to >= facts.state.queued_position


def _behind(facts: Facts) -> Iterator[Cause]:
    ahead = facts.ahead
    if ahead is None or ahead.higher + ahead.same == 0:
        return
    number = ahead.higher + ahead.same
    more = number > MOST_AHEAD
    count = f"More than {MOST_AHEAD:,}" if more else f"{number:,}"
    tasks = "task comes" if number == 1 else "tasks come"
    yield Cause(
        "behind_others",
        f"{count} {tasks} first in its queue, {facts.state.queue}.",
        {
            "ahead": min(number, MOST_AHEAD),
            "of_higher_priority": min(ahead.higher, MOST_AHEAD),
            "of_the_same_priority": min(ahead.same, MOST_AHEAD),
            "and_more": more,
            "priority": facts.state.priority,
            "counted_at": facts.token(ahead.position),
        },
    )
