"""The records whose stored form lies beside this file, one of each kind with all fields set, one with the
required ones alone, and one with its text encrypted. A golden file never changes: a new form is a new
version and a new file."""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from events.key_events import KeyErased
from events.queue_events import QueuePaused, QueueResumed
from events.records import EventRecord
from events.task_events import (
    PrivateEvent,
    RetryPolicy,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskCreated,
    TaskDeadLettered,
    TaskDiscarded,
    TaskError,
    TaskFailed,
    TaskQueued,
    TaskRequeued,
    TaskStarted,
)
from events.webhook_events import (
    WebhookCreated,
    WebhookDeleted,
    WebhookDisabled,
    WebhookEnabled,
    WebhookRedeliveryRequested,
    WebhookSecretRotated,
    WebhookTested,
)

TASK: Final = UUID("0199d1a0-7c1e-7abc-8def-0123456789ab")
UID: Final = "dGFza2xlZGdlcjAx"
SEALED: Final = "AQCrgEUSZ3hM3qvNEjRWeJq8AAAAAAACc2l4IHRpbWVzIHR3byBpcyBmb3J0eSB0d28="
WHEN: Final = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)


def envelope(version: int = 1) -> dict[str, Any]:
    """What every record needs, its random uid included."""
    return {"originator_id": TASK, "originator_version": version, "event_uid": UID}


def _traced(version: int) -> dict[str, Any]:
    return {
        **envelope(version),
        "correlation_id": "0199d1a0-0000-7000-8000-000000000001",
        "causation_id": "0199d1a0-0000-7000-8000-000000000002",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "actor": "key:ops",
    }


def _both(cls: type[EventRecord], required: dict[str, Any], **optional: Any) -> dict[str, EventRecord]:
    version = 1 if cls in {TaskCreated, QueuePaused, WebhookCreated, KeyErased} else 2
    return {
        "full": cls(**_traced(version), **required, **optional),
        "minimal": cls(**envelope(version), **required),
    }


def _sealed(cls: type[PrivateEvent], **clear: Any) -> dict[str, EventRecord]:
    """What it looks like where its text is encrypted."""
    version = 1 if cls is TaskCreated else 2
    return {"sealed": cls(**envelope(version), **clear, sealed=SEALED)}


_BY: Final = {"by": "key:ops", "reason": "maintenance – until noon"}
_QUEUE: Final = {"tenant": "acme", "queue": "slow"}
_TENANT: Final = {"tenant": "acme"}

RECORDS: Final[dict[tuple[type[EventRecord], int], dict[str, EventRecord]]] = {
    (TaskCreated, 1): _sealed(TaskCreated, kind="sum", payload=None)
    | _both(
        TaskCreated,
        {"kind": "sum", "payload": {"x": 1, "y": [2.5, None, True, "ünïcödé \x00"]}},
        queue="slow",
        priority="high",
        run_at=WHEN,
        scheduled=True,
        max_attempts=7,
        timeout_seconds=12.5,
        retry=RetryPolicy(base_seconds=2.0, cap_seconds=60.0),
        tags=("blue", "eu-west.1"),
        tenant="acme",
    ),
    (TaskStarted, 1): _both(
        TaskStarted,
        {"attempt": 3, "holder": "0199d1a0-1111-7000-8000-000000000003", "worker": "worker-7"},
    ),
    (TaskCompleted, 1): _both(TaskCompleted, {"attempt": 3}, result={"sum": 3}, duration=0.125)
    | _sealed(TaskCompleted, attempt=3),
    (TaskFailed, 1): _sealed(
        TaskFailed, attempt=3, cause="error", error=TaskError(type="ValueError", message="")
    )
    | _both(
        TaskFailed,
        {"attempt": 3, "cause": "error"},
        error=TaskError(type="ValueError", message="no such luck", traceback="Traceback …"),
        counted=False,
        retry_at=WHEN,
    ),
    (TaskQueued, 1): _both(TaskQueued, {"reason": "due"}),
    (TaskDeadLettered, 1): _both(TaskDeadLettered, {"reason": "attempts_exhausted", "attempts": 5}),
    (TaskCancelRequested, 1): _both(TaskCancelRequested, {}, **_BY)
    | _sealed(TaskCancelRequested, by="key:ops"),
    (TaskCancelled, 1): _both(TaskCancelled, {}, **_BY) | _sealed(TaskCancelled),
    (TaskRequeued, 1): _both(TaskRequeued, {}, **_BY) | _sealed(TaskRequeued),
    (TaskDiscarded, 1): _both(TaskDiscarded, {}, **_BY) | _sealed(TaskDiscarded),
    (QueuePaused, 1): _both(QueuePaused, _QUEUE, **_BY),
    (QueueResumed, 1): _both(QueueResumed, _QUEUE, **_BY),
    (WebhookCreated, 1): _both(
        WebhookCreated,
        {
            **_TENANT,
            "url": "https://example.com/hooks?of=tasks",
            "types": ("TaskCompleted", "TaskDeadLettered"),
        },
        **_BY,
        kinds=("sum",),
        queues=("slow", "default"),
        tags=("eu-west.1",),
        description="the ledger of our shop",
        after=41,
    ),
    (WebhookDeleted, 1): _both(WebhookDeleted, _TENANT, **_BY),
    (WebhookDisabled, 1): _both(WebhookDisabled, {**_TENANT, "cause": "gone"}, **_BY),
    (WebhookEnabled, 1): _both(WebhookEnabled, _TENANT, **_BY),
    (WebhookSecretRotated, 1): _both(WebhookSecretRotated, _TENANT, **_BY),
    (WebhookTested, 1): _both(WebhookTested, _TENANT, **_BY),
    (WebhookRedeliveryRequested, 1): _both(
        WebhookRedeliveryRequested, _TENANT, **_BY, dead=True, after=41, upto=43
    ),
    (KeyErased, 1): _both(
        KeyErased,
        {"tenant": "acme", "scope": "subject", "by": "ops", "reason": "request 4711"},
        keys=12,
    ),
}
"""By class and stored version: what each golden file must decode to, by the names of its entries."""
