"""How an attempt goes, or how the task ended. Pure."""

from collections.abc import Iterator
from typing import Any, Final

from events.task_state import TaskState
from query_side.explain.causes import Cause, failure_json, told_json
from query_side.explain.facts import Facts, Holder
from query_side.shapes import Json

OVERTIME_SECONDS: Final = 1.0
"""A worker ends an attempt at its timeout, the sweeper 10 s later."""


def running(facts: Facts) -> Iterator[Cause]:
    state, holder = facts.state, facts.holder
    started = {
        "attempt": state.attempt,
        "worker": state.worker,
        "started_at": state.started_at,
        "running_seconds": facts.since(state.started_at),
    }
    if state.cancel_requested:
        yield Cause(
            "cancel_requested",
            f"It was asked to stop; {state.worker} has not confirmed that it did.",
            {**started, **(told_json(facts, facts.told) if facts.told else {})},
        )
    late = (facts.since(state.started_at) or 0.0) - state.timeout_seconds
    if late > OVERTIME_SECONDS:
        yield Cause(
            "over_its_time",
            f"Attempt {state.attempt} has run {late:.0f} s longer than its {state.timeout_seconds:g} s.",
            {**started, "timeout_seconds": state.timeout_seconds},
            "The dispatcher ends it 10 s after its time: is one running?",
        )
    if holder is None or holder.silent_seconds > holder.lease_seconds / 2:
        yield _silent(facts, started)
    elif not state.cancel_requested:
        yield Cause(
            "running",
            f"Attempt {state.attempt} runs on {state.worker}.",
            {**started, "seen_seconds_ago": round(holder.silent_seconds, 3), **_place(holder)},
        )


def _silent(facts: Facts, started: Json) -> Cause:
    """Half a lease is when a worker stops trusting itself."""
    state, holder = facts.state, facts.holder
    if holder is None:
        message = f"Attempt {state.attempt} was started by {state.worker}, which has given no sign of life."
        evidence = {**started, "seen_seconds_ago": None}
    else:
        silent = holder.silent_seconds
        message = f"Attempt {state.attempt} was started by {state.worker}, not seen for {silent:.0f} s."
        evidence = {
            **started,
            "seen_seconds_ago": round(silent, 3),
            "lease_seconds": holder.lease_seconds,
            **_place(holder),
        }
    return Cause(
        "holder_silent",
        message,
        evidence,
        "The dispatcher gives it to another worker once the lease has run out.",
    )


def settled(facts: Facts) -> Cause:
    state = facts.state
    evidence: Json = {"finished_at": state.finished_at, "position": facts.token(state.position)}
    told = {**evidence, **(told_json(facts, facts.told) if facts.told else {})}
    by = f" by {facts.told.by}" if facts.told and facts.told.by else ""
    match state.status:
        case "completed":
            ran = {"attempt": state.attempt, "worker": state.worker, "started_at": state.started_at}
            return Cause("completed", f"Attempt {state.attempt} completed it.", {**evidence, **ran})
        case "cancelled":
            return Cause("cancelled", f"It was cancelled{by}.", told, _again(state))
        case "discarded":
            return Cause("discarded", f"It was given up{by}.", told)
        case _:
            last = [failure_json(facts, failure) for failure in facts.failures[-3:]]
            counts = {"attempts": state.attempt, "max_attempts": state.max_attempts}
            message = _DEAD.get(facts.dead_reason or "", "It is dead.").format(
                failures=state.failures, max_attempts=state.max_attempts
            )
            why = {**evidence, "reason": facts.dead_reason, **counts, "last_failures": last}
            return Cause("dead_letter", message, why, _again(state))


_DEAD: Final = {
    "attempts_exhausted": "It failed as often as it may: {failures} of {max_attempts}.",
    "not_retryable": "Its last failure was said to be beyond repair.",
    "discarded": "Its handler gave it up.",
}


def _again(state: TaskState) -> str:
    return f"POST /tasks/{state.id}/requeue starts it again, /discard gives it up."


def _place(holder: Holder) -> Json:
    info: dict[str, Any] = holder.info or {}
    return {name: info[name] for name in ("host", "pid") if name in info}
