"""What a cause is, and what causes share. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from query_side.explain.facts import Facts, Failure, Told
from query_side.shapes import Json

Code = Literal[
    "unreadable_event",
    "scheduled",
    "backing_off",
    "due_not_queued",
    "queue_paused",
    "dispatcher_behind",
    "no_live_worker",
    "no_worker_for_queue",
    "no_worker_for_kind",
    "awaiting_claim",
    "workers_busy",
    "behind_others",
    "about_to_start",
    "runs_alone_next",
    "running",
    "holder_silent",
    "over_its_time",
    "cancel_requested",
    "completed",
    "cancelled",
    "discarded",
    "dead_letter",
]
"""Stable. Each is told of in docs/howto/explain.md."""


@dataclass(frozen=True, slots=True)
class Cause:
    code: Code
    message: str
    """One sentence."""
    evidence: Json
    advice: str | None = None


def failure_json(facts: Facts, failure: Failure) -> Json:
    return {
        "attempt": failure.attempt,
        "cause": failure.cause,
        "type": failure.error_type,
        "message": failure.message,
        "at": failure.at,
        "position": facts.token(failure.position),
    }


def told_json(facts: Facts, told: Told) -> Json:
    return {
        "by": told.by,
        "reason": told.reason,
        "at": told.at,
        "told_position": facts.token(told.position),
    }


def iso(at: datetime | None) -> str:
    return "an unknown time" if at is None else f"{at:%Y-%m-%dT%H:%M:%SZ}"
