"""What a task's events may be and what they make of it, written from the contract alone.

Shares no code with the product's own fold, so that the two can be held against each other. Two states are
the model's own: `cancelling` is running with a cancel request, `failed` lies between a TaskFailed without
`retry_at` and the event of the same append that says what follows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tests.chaos.evidence import LoggedEvent

State = dict[str, Any]

NEW: Final = "new"
SETTLED: Final = frozenset({"completed", "dead", "cancelled", "discarded"})
SHOWN: Final = {"cancelling": "running", "failed": "retrying"}
MAX_ATTEMPTS: Final = 5

MOVES: Final[dict[str, dict[str, str]]] = {
    "TaskCreated": {NEW: "queued"},
    "TaskQueued": {"scheduled": "queued", "retrying": "queued", "failed": "queued", "queued": "queued"},
    "TaskStarted": {"queued": "running"},
    "TaskCompleted": {"running": "completed", "cancelling": "completed"},
    "TaskFailed": {"running": "retrying"},
    "TaskDeadLettered": {"failed": "dead"},
    "TaskCancelRequested": {"running": "cancelling"},
    "TaskCancelled": {
        "scheduled": "cancelled",
        "queued": "cancelled",
        "retrying": "cancelled",
        "cancelling": "cancelled",
    },
    "TaskRequeued": {"dead": "queued", "cancelled": "queued"},
    "TaskDiscarded": {"dead": "discarded", "cancelled": "discarded"},
}
"""Topic -> the states it may follow, each with the state after it. Created may also be scheduled, and a
failure may leave the task `failed`."""


class IllegalEvent(Exception):  # noqa: N818  it says what happened
    """The event cannot come next. `after_end`: the task had settled, and this does not revive it."""

    def __init__(self, message: str, *, after_end: bool = False) -> None:
        super().__init__(message)
        self.after_end = after_end


def apply(state: State | None, event: LoggedEvent) -> State:
    """The task after the event, as a new dict. Raises IllegalEvent."""
    before = _new(event) if state is None else state
    status = before["status"]
    if event.type not in MOVES:
        raise IllegalEvent(f"{event.type} is no event of a task")
    if status not in MOVES[event.type]:
        raise IllegalEvent(f"{event.type} follows {status}", after_end=status in SETTLED)
    if event.version != before["version"] + 1:
        raise IllegalEvent(f"version {event.version} follows {before['version']}")
    if event.position <= before["position"]:
        raise IllegalEvent(f"position {event.position} follows {before['position']}")
    if status == "failed" and event.position != before["position"] + 1:
        raise IllegalEvent(f"{event.type} was not appended together with the failure before it")
    after = {**before, "status": MOVES[event.type][status]}
    rule = _RULES.get(event.type)
    if rule is not None:
        rule(after, before, event.data)
    after["version"], after["position"] = event.version, event.position
    return after


def _new(event: LoggedEvent) -> State:
    return {
        "task": event.task,
        "status": NEW,
        "version": 0,
        "position": 0,
        "attempt": 0,
        "failures": 0,
        "max_attempts": event.data.get("max_attempts", MAX_ATTEMPTS),
        "cause": None,
    }


def _created(after: State, _: State, data: dict[str, Any]) -> None:
    if data.get("scheduled", False):
        if data.get("run_at") is None:
            raise IllegalEvent("scheduled without a time")
        after["status"] = "scheduled"


def _queued(_: State, before: State, data: dict[str, Any]) -> None:
    reasons = {"scheduled": "due", "retrying": "retry", "queued": "lost", "failed": before["cause"]}
    expected = reasons[before["status"]]
    if data["reason"] != expected or expected not in ("due", "retry", "lost", "handed_back"):
        raise IllegalEvent(
            f"queued for reason {data['reason']} after {before['status']} ({before['cause']})"
        )
    if before["status"] == "failed" and _is_exhausted(before):
        raise IllegalEvent(f"queued after {before['failures']} failures of {before['max_attempts']}")


def _started(after: State, before: State, data: dict[str, Any]) -> None:
    if data["attempt"] != before["attempt"] + 1:
        raise IllegalEvent(f"attempt {data['attempt']} follows {before['attempt']}")
    after["attempt"] = data["attempt"]


def _completed(_: State, before: State, data: dict[str, Any]) -> None:
    _refuse_superseded(before, data)


def _failed(after: State, before: State, data: dict[str, Any]) -> None:
    _refuse_superseded(before, data)
    cause = data["cause"]
    counted = data.get("counted", True)
    if counted not in _may_count(before, cause):
        raise IllegalEvent(f"a failure by {cause} after {before['cause']} has counted={counted}")
    after["failures"] += counted
    after["cause"] = cause
    if data.get("retry_at") is None:
        after["status"] = "failed"
    elif cause == "discarded" or (counted and _is_exhausted(after)):
        raise IllegalEvent(
            f"retried after {after['failures']} failures of {after['max_attempts']}, {cause}"
        )


def _may_count(before: State, cause: str) -> tuple[bool, ...]:
    """Of two losses in a row the second happened alone in its process: the task's own doing, unless more
    than its process was lost. That doubt does not last for ever."""
    if cause == before["cause"] == "lost":
        return (True,) if before["attempt"] > before["max_attempts"] + 1 else (True, False)
    return (cause in ("error", "timeout", "discarded"),)


def _dead(_: State, before: State, data: dict[str, Any]) -> None:
    if data["attempts"] != before["attempt"]:
        raise IllegalEvent(f"dead after {data['attempts']} attempts, {before['attempt']} were started")
    reason = data["reason"]
    if (reason == "discarded") != (before["cause"] == "discarded"):
        raise IllegalEvent(f"dead for reason {reason} after a failure by {before['cause']}")
    if reason == "attempts_exhausted" and not _is_exhausted(before):
        raise IllegalEvent(f"dead after {before['failures']} failures of {before['max_attempts']}")


def _requeued(after: State, _: State, __: dict[str, Any]) -> None:
    after["failures"], after["cause"] = 0, None


def _refuse_superseded(before: State, data: dict[str, Any]) -> None:
    if data["attempt"] != before["attempt"]:
        raise IllegalEvent(f"attempt {data['attempt']} ends, {before['attempt']} is the running one")


def _is_exhausted(state: State) -> bool:
    return bool(state["failures"] >= state["max_attempts"])


_RULES: Final[dict[str, Callable[[State, State, dict[str, Any]], None]]] = {
    "TaskCreated": _created,
    "TaskQueued": _queued,
    "TaskStarted": _started,
    "TaskCompleted": _completed,
    "TaskFailed": _failed,
    "TaskDeadLettered": _dead,
    "TaskRequeued": _requeued,
}


class Shown(NamedTuple):
    """The task as of one version, as readers are to see it."""

    event: str
    position: int
    status: str
    attempt: int
    cancelling: bool


class Flaw(NamedTuple):
    position: int
    text: str
    after_end: bool


@dataclass(slots=True)
class TaskHistory:
    """A task's events folded, up to its first flaw. `versions[n - 1]` is the task as of version n."""

    events: list[LoggedEvent] = field(default_factory=list[LoggedEvent])
    versions: list[Shown] = field(default_factory=list[Shown])
    flaw: Flaw | None = None
    state: State | None = None

    def add(self, event: LoggedEvent) -> None:
        self.events.append(event)
        if self.flaw is not None:
            return
        try:
            self.state = apply(self.state, event)
        except IllegalEvent as illegal:
            self.flaw = Flaw(event.position, str(illegal), illegal.after_end)
        else:
            self.versions.append(shown(self.state, event.type))


def shown(state: State, event: str) -> Shown:
    status: str = state["status"]
    return Shown(
        event, state["position"], SHOWN.get(status, status), state["attempt"], status == "cancelling"
    )


def fold(log: Iterable[LoggedEvent]) -> dict[str, TaskHistory]:
    """The tasks of a log given by rising position."""
    tasks: dict[str, TaskHistory] = {}
    for event in log:
        history = tasks.get(event.task)
        if history is None:
            history = tasks[event.task] = TaskHistory()
        history.add(event)
    return tasks
