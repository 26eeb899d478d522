"""The answers, for the OpenAPI document. The routes write them straight from rows."""

from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from events.task_events import Priority, TaskError
from events.task_state import Status
from events.webhook_events import DisabledCause
from query_side.explain.causes import Code


class Progress(BaseModel):
    progress: float | None
    note: str | None


class Task(BaseModel):
    """null where there is none yet."""

    id: UUID
    kind: str
    status: Status
    queue: str
    priority: Priority
    tags: list[str]
    payload: Any
    result: Any
    error: TaskError | None
    attempt: int
    """How many attempts ever started."""
    max_attempts: int
    progress: Progress | None
    version: int
    position: str
    created_at: datetime
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    worker: str | None
    erased_at: datetime | None
    """Since when nobody can read its payload, result and error, which are null."""


class TaskPage(BaseModel):
    tasks: list[Task]
    next_cursor: str | None
    """null on the last page. A page may hold fewer tasks than asked for when they are large, and one of the
    past also when few of many had the status asked for."""


class TaskEvent(BaseModel):
    position: str
    version: int
    type: str
    timestamp: datetime
    data: Any
    metadata: dict[str, str]


class TaskEvents(BaseModel):
    events: list[TaskEvent]


class Cause(BaseModel):
    code: Code
    message: str
    evidence: dict[str, Any]
    """Names, times, numbers and positions, as the code has them."""


class Explanation(BaseModel):
    id: UUID
    status: Status
    summary: str
    """The first cause, in one sentence."""
    causes: list[Cause]
    """What holds the task now, then what will hold it next. At least one."""
    advice: str | None
    position: str
    """The end of the log when it was looked at."""


class FeedEvent(TaskEvent):
    task_id: UUID | None
    kind: str | None
    queue: str | None


class Feed(BaseModel):
    events: list[FeedEvent]
    next: str
    head: str


class Stats(BaseModel):
    total: int
    by_status: dict[Status, int]
    by_kind: dict[str, dict[Status, int]]
    by_queue: dict[str, dict[Status, int]]
    rates: dict[Literal["1m", "5m", "60m"], dict[str, float]]
    """Events a second over the last whole minutes."""
    position: str
    head: str
    lag: int
    """Events that the read tables are behind the log."""


class Queue(BaseModel):
    queue: str
    depth: int
    """Tasks that wait for a worker now."""
    counts: dict[Status, int]
    oldest_queued_at: datetime | None
    oldest_age_seconds: float | None
    paused: bool
    paused_at: datetime | None
    paused_by: str | None
    paused_reason: str | None


class Queues(BaseModel):
    queues: list[Queue]


class Kind(BaseModel):
    kind: str
    external: bool
    """Its workers claim over HTTP."""
    queue: str
    priority: Priority | None
    max_attempts: int | None
    timeout_seconds: float | None
    payload_schema: dict[str, Any] | None
    result_schema: dict[str, Any] | None


class Kinds(BaseModel):
    kinds: list[Kind]


class Worker(BaseModel):
    holder: str
    info: dict[str, Any]
    lease_seconds: float
    renewed_at: datetime


class Workers(BaseModel):
    workers: list[Worker]


class Webhook(BaseModel):
    id: UUID
    url: str
    types: list[str]
    kinds: list[str]
    queues: list[str]
    tags: list[str]
    description: str | None
    status: Literal["enabled", "disabled"]
    cause: DisabledCause | None
    """Why it is disabled."""
    version: int
    position: str
    created_at: datetime
    changed_at: datetime
    rotated_at: datetime | None
    pending: int
    """Deliveries that wait, counted up to 10,000; so are the dead ones."""
    dead: int
    oldest_pending_seconds: float | None
    replaying: bool
    """Earlier events are being set to be sent again."""
    lag: int
    """Events that nobody has looked at yet, whether they are asked for or not."""
    failures: int
    """In a row."""
    failing_since: datetime | None
    paused_until: datetime | None
    last_attempt_at: datetime | None
    last_success_at: datetime | None
    last_status: int | None
    last_error: str | None


class Webhooks(BaseModel):
    webhooks: list[Webhook]


class Delivery(BaseModel):
    position: str
    """Of the event; `webhook-id` ends with it."""
    type: str
    task_id: UUID | None
    """null for a test."""
    status: Literal["pending", "delivered", "dead"]
    attempt: int
    """How many there were."""
    created_at: datetime
    next_at: datetime | None
    """Of the next attempt, where there was one."""
    last_attempt_at: datetime | None
    settled_at: datetime | None
    last_status: int | None
    last_error: str | None


class Deliveries(BaseModel):
    deliveries: list[Delivery]
    next: str | None
    """null on the last page; else `before` of the next one."""


class ProofHead(BaseModel):
    log: str
    size: int
    """How many events from the first one on it is over."""
    position: str
    root: str
    """SHA-256 in base64, as all hashes here."""
    sealed_at: datetime
    signed: bool
    """False: the sealer has no key."""
    note: str
    """What is signed, and the signature: c2sp.org/tlog-checkpoint."""


class ProvedEvent(BaseModel):
    """With the very fields that are hashed: see examples/check_proof.py."""

    position: int
    originator_id: UUID
    version: int
    topic: str
    recorded_at: datetime
    tenant: str
    kind: str
    queue: str
    state: str | None = None
    state_base64: str | None = None
    """In place of `state` where that is no text."""
    leaf_hash: str
    path: list[str]
    """From the leaf upwards: RFC 9162, section 2.1.3."""


class TaskProof(BaseModel):
    task_id: UUID
    head: ProofHead
    events: list[ProvedEvent]


class Consistency(BaseModel):
    from_: int = Field(alias="from")
    head: ProofHead
    path: list[str]
    """RFC 9162, section 2.1.4."""


class UsageRow(BaseModel):
    day: date
    tag: str | None
    """null: tasks without a tag. A task with several counts for each of them."""
    completed: int
    attempts: int
    """Started that day."""
    seconds: float
    """That handlers ran, of the attempts that completed."""


class UsagePage(BaseModel):
    from_: date = Field(alias="from")
    to: date
    usage: list[UsageRow]
