"""What becomes of a delivery after an attempt, and of its endpoint. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final, Literal

from command_side.backoff import backoff_seconds
from events.task_events import RetryPolicy

Failure = Literal[
    "status",
    "redirect",
    "gone",
    "timeout",
    "dns",
    "connect",
    "tls",
    "protocol",
    "not_allowed",
    "unreadable",
]
"""Why an attempt failed, in the few words that are kept of it. not_allowed: the host has got an address to
which nothing may be sent; unreadable: the task's history holds an event that this release does not know."""

PAUSE_BASE_SECONDS: Final = 1.0
PAUSE_CAP_SECONDS: Final = 60.0
"""Of an endpoint that failed, before the next delivery of any event is tried there; never more than what
one delivery would wait."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    failure: Failure | None = None
    """None for a status of 2xx, whatever followed it."""
    status: int | None = None
    retry_after_seconds: float = 0.0
    """Asked for by the endpoint; 0: nothing."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`retry`: between the attempts of one delivery. After `max_attempts` it is dead."""

    retry: RetryPolicy
    max_attempts: int
    disable_after_seconds: float
    """Of failures without one success."""

    @property
    def pause(self) -> RetryPolicy:
        return RetryPolicy(
            base_seconds=min(PAUSE_BASE_SECONDS, self.retry.base_seconds),
            cap_seconds=min(PAUSE_CAP_SECONDS, self.retry.cap_seconds),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    status: Literal["delivered", "pending", "dead"]
    wait_seconds: float = 0.0
    """Of a pending one, until the next attempt."""


def judge(answer: Answer, attempt: int, jitter: float, policy: Policy) -> Verdict:
    """Of the delivery whose attempt with this number (from 1) got this answer; `jitter` in [0, 1]."""
    if answer.failure is None:
        return Verdict("delivered")
    if answer.failure == "gone" or attempt >= policy.max_attempts:
        return Verdict("dead")
    wait = backoff_seconds(policy.retry, attempt, jitter)
    return Verdict("pending", max(wait, min(answer.retry_after_seconds, policy.retry.cap_seconds)))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What some attempts tell of where they were sent."""

    failures: int
    """In a row, whatever was sent: one for each time that nothing of what was sent at once succeeded."""
    pause_seconds: float
    """How long nothing more is sent there."""
    last: Answer


def endpoint_after(
    failures: int, answers: Sequence[Answer], jitter: float, policy: Policy
) -> Endpoint | None:
    """After attempts made at once; None where none of them was sent. An endpoint that takes nothing gets
    one request at a time, more and more seldom, so that what waits does not all run down its attempts;
    one that takes some is not held up by an event that it does not take."""
    sent = [answer for answer in answers if answer.failure != "unreadable"]
    if not sent:
        return None
    asked = max(answer.retry_after_seconds for answer in sent)
    pause = min(asked, policy.retry.cap_seconds)
    if any(answer.failure is None for answer in sent):
        return Endpoint(0, pause, sent[-1])
    return Endpoint(failures + 1, max(pause, backoff_seconds(policy.pause, failures + 1, jitter)), sent[-1])


def classify(status: int) -> Failure | None:
    """Only 2xx is success. Redirects are not followed: where they lead nobody has looked at."""
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    if status == HTTPStatus.GONE:
        return "gone"
    return "redirect" if status < HTTPStatus.BAD_REQUEST else "status"


def retry_after_seconds(value: str, now: datetime) -> float:
    """Of a Retry-After header: seconds, or a date (RFC 9110, 10.2.3). 0 for what is neither, or past."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - now).total_seconds())
