"""Random commands, and the record of what became of them in the terms of the independent model."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from command_side.commands import (
    CancelTask,
    CompleteTask,
    CreateTask,
    DiscardTask,
    FailTask,
    QueueDue,
    ReplaceEntry,
    RequeueTask,
    StartTask,
    TaskCommand,
)
from events.append import RecordedEvent
from events.codec import EventMapper, data_of
from events.ids import as_uuid
from events.records import EventRecord
from events.task_events import FailureCause, RetryPolicy, TaskError
from tests.chaos.evidence import LoggedEvent
from tests.chaos.model import SETTLED, State

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
MAPPER = EventMapper()
CAUSES: tuple[FailureCause, ...] = (
    "error",
    "error",
    "error",
    "lost",
    "lost",
    "lost",
    "lost",
    "timeout",
    "retry_later",
    "handed_back",
    "discarded",
)
"""Losses often: they matter in pairs."""
ERRORS = (None, TaskError(type="ValueError", message="no"))


def usual(*, examples: int, steps: int = 50) -> settings:
    """What fits into every test run; another profile, chosen on the command line, has its own numbers."""
    if settings.get_current_profile_name() == "long":
        return settings()
    return settings(deadline=None, max_examples=examples, stateful_step_count=steps)


attempts = st.integers(-1, 1)
"""Relative to the task's present attempt: superseded, right, not started yet."""


def fail_commands(attempt: int) -> st.SearchStrategy[FailTask]:
    return st.builds(
        FailTask,
        attempt=st.just(attempt),
        cause=st.sampled_from(CAUSES),
        error=st.sampled_from(ERRORS),
        retryable=st.sampled_from([True, True, True, False]),
        retry_in_seconds=st.sampled_from([None, 0.0, 30.0]),
        beside_others=st.sampled_from([False, False, True]),
        jitter=st.floats(0.0, 1.0),
    )


def any_command(attempt: int, queued_position: int) -> st.SearchStrategy[TaskCommand]:
    """To a task at this attempt, whether it makes sense or not."""
    return st.one_of(
        st.just(StartTask("holder", "w")),
        attempts.map(lambda n: CompleteTask(attempt + n, {"sum": 3})),
        attempts.flatmap(lambda n: fail_commands(attempt + n)),
        st.just(QueueDue()),
        st.integers(-1, 0).map(lambda n: ReplaceEntry(queued_position + n)),
        st.sampled_from([CancelTask(by="ops", reason="why"), RequeueTask(by="ops"), DiscardTask(by="ops")]),
    )


def next_command(status: str, attempt: int) -> st.SearchStrategy[TaskCommand]:
    """One that takes a task of this status on, so that histories grow long."""
    match status:
        case "queued":
            return st.sampled_from([StartTask("holder", "w")] * 4 + [StartTask(None, "w")])
        case "running":
            ends = st.just(CompleteTask(attempt, {"sum": 3}))
            lost = st.sampled_from([False, True]).map(
                lambda beside: FailTask(attempt, "lost", beside_others=beside)
            )
            return st.one_of(fail_commands(attempt), lost, lost, ends, st.just(CancelTask()))
        case "scheduled" | "retrying":
            return st.just(QueueDue())
        case "dead" | "cancelled":
            return st.just(RequeueTask(by="ops"))
        case _:
            return st.just(CancelTask())


def has_effect(state: State, command: TaskCommand) -> bool:
    """Whether the command changes a task in this state of the model. Says nothing of times, positions."""
    status = state["status"]
    match command:
        case StartTask() | ReplaceEntry():
            return bool(status == "queued")
        case CompleteTask() | FailTask():
            return status in ("running", "cancelling") and bool(command.attempt == state["attempt"])
        case QueueDue():
            return status in ("scheduled", "retrying")
        case CancelTask():
            return status not in SETTLED and status != "cancelling"
        case RequeueTask() | DiscardTask():
            return status in ("dead", "cancelled")


def creations(**changes: Any) -> st.SearchStrategy[CreateTask]:
    """Due at once, later, or since long."""
    options: dict[str, st.SearchStrategy[Any]] = {
        "kind": st.just("mark"),
        "payload": st.just({"mark": "m"}),
        "priority": st.sampled_from(["high", "normal", "low"]),
        "run_at": st.sampled_from([None, None, START - timedelta(days=1), START + timedelta(days=1)]),
        "max_attempts": st.integers(1, 3),
        "retry": st.sampled_from([None, RetryPolicy(base_seconds=0.5, cap_seconds=2.0)]),
        "tags": st.sampled_from([(), ("a", "b")]),
    }
    return st.builds(CreateTask, **{**options, **changes})


def logged(event: EventRecord, position: int, tenant: str = "default") -> LoggedEvent:
    data = data_of(event)
    mark = data["payload"].get("mark") if event.TOPIC == "TaskCreated" else None
    return LoggedEvent(
        position, str(event.originator_id), event.originator_version, event.TOPIC, data, tenant, mark
    )


def recorded_as(event: EventRecord, position: int, at: datetime, kind: str, queue: str) -> RecordedEvent:
    """As the log would have it."""
    stored = MAPPER.encode(event)
    return RecordedEvent(
        originator_id=as_uuid(stored.originator_id),
        originator_version=stored.originator_version,
        topic=stored.topic,
        state=stored.state,
        id=position,
        recorded_at=at,
        tenant="default",
        kind=kind,
        queue=queue,
    )
