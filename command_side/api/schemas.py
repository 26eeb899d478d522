"""Bodies of requests, checked strictly, and of answers, which only document what is sent."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from command_side.webhooks.matching import DEFAULT_TYPES, TASK_TYPES
from command_side.webhooks.targets import MAX_URL
from events.task_events import Priority
from events.task_state import Status
from events.webhook_events import DisabledCause, WebhookStatus

NAME: Final = r"^[a-z][a-z0-9_.-]{0,63}$"
MAX_TAGS: Final = 16
MAX_TIMEOUT_SECONDS: Final = 7 * 86400
MAX_DELAY_SECONDS: Final = 3653 * 86400
"""Ten years, with three leap days."""
MAX_CLAIMED: Final = 100
MAX_WAIT_SECONDS: Final = 60
MAX_LEASE_SECONDS: Final = 3600

_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _rfc3339(value: object) -> object:
    """In UTC. Only a string with an offset says which moment it means."""
    if value is None:
        return None
    moment = _moment(value) if isinstance(value, str) and _RFC3339.fullmatch(value) else None
    if moment is None:
        raise PydanticCustomError(
            "rfc3339", "must be an RFC 3339 time with an offset, like 2026-01-31T12:00:00Z"
        )
    return moment


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _unique(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise PydanticCustomError("not_unique", "must not hold a name twice")
    return names


Name = Annotated[str, Field(pattern=NAME)]
Names = Annotated[list[Name], AfterValidator(_unique)]
Time = Annotated[
    datetime | None,
    BeforeValidator(_rfc3339),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}),
]
Attempt = Annotated[int, Field(ge=1, lt=2**31)]
ShortText = Annotated[str, Field(max_length=500)]
Worker = Annotated[str, Field(pattern=r"^[!-~]{1,128}$", description="1 to 128 visible ASCII characters")]
LeaseSeconds = Annotated[float, Field(ge=1, le=MAX_LEASE_SECONDS)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class NewTask(_Body):
    """What is left out follows the kind; the defaults shown are those of a kind that sets none."""

    kind: Name
    payload: Any = Field(description="Checked against the kind's type, stored as sent.")
    queue: Name = "default"
    priority: Priority = "normal"
    run_at: Time = Field(default=None, description="Not before this time; one in the past means now.")
    delay_seconds: Annotated[float, Field(ge=0, le=MAX_DELAY_SECONDS)] | None = Field(
        default=None, description="As run_at, counted from now. Not together with it."
    )
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    timeout_seconds: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_SECONDS)] = 300.0
    # Made by a factory: pydantic copies a mutable default deeply, which costs as much as all the rest.
    tags: Annotated[Names, Field(max_length=MAX_TAGS)] = Field(
        default_factory=list, json_schema_extra={"default": []}
    )
    subject: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        default=None, description="Whoever the data is about: `taskledger erase` makes it unreadable."
    )


class NewTasks(_Body):
    """All of them are created, or none."""

    tasks: Annotated[list[NewTask], Field(min_length=1)]


class Start(_Body):
    worker: Worker
    lease_seconds: LeaseSeconds | None = None


class Claim(_Body):
    worker: Worker
    kinds: Annotated[Names, Field(min_length=1, max_length=MAX_CLAIMED)] | None = Field(
        default=None, description="External kinds; all of them if left out."
    )
    limit: Annotated[int, Field(ge=1, le=MAX_CLAIMED)] = 1
    lease_seconds: LeaseSeconds | None = None
    wait_seconds: Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS)] = 0.0


class Completion(_Body):
    attempt: Attempt
    result: Any


class ErrorBody(_Body):
    type: Annotated[str, Field(min_length=1, max_length=500)]
    message: str
    traceback: str | None = None


class Failure(_Body):
    attempt: Attempt
    error: ErrorBody
    retryable: bool = True


class Heartbeat(_Body):
    attempt: Attempt
    progress: Annotated[float, Field(ge=0)] | None = None
    note: ShortText | None = None


class Because(_Body):
    reason: ShortText | None = None


TaskType = Annotated[str, Field(json_schema_extra={"enum": [*sorted(TASK_TYPES)]})]
Position = Annotated[str, Field(max_length=40, description="`start`, or a position token.")]


def _known_types(types: list[str]) -> list[str]:
    if not TASK_TYPES.issuperset(types):
        raise PydanticCustomError("unknown_type", "must hold types of task events only, as GET /events has")
    return types


class NewWebhook(_Body):
    """What is left out leaves nothing out; but for `types`: those after which a task is settled."""

    url: Annotated[str, Field(min_length=1, max_length=MAX_URL)] = Field(
        description="https, of a host with public addresses, without user name and fragment."
    )
    types: Annotated[
        list[TaskType], Field(min_length=1), AfterValidator(_unique), AfterValidator(_known_types)
    ] = list(DEFAULT_TYPES)
    kinds: Annotated[Names, Field(max_length=100)] = Field(default=[], description="Any of them.")
    queues: Annotated[Names, Field(max_length=100)] = Field(default=[], description="Any of them.")
    tags: Annotated[Names, Field(max_length=MAX_TAGS)] = Field(
        default=[], description="The task has all of them."
    )
    description: ShortText | None = None
    after: Position | None = Field(default=None, description="Events above it are sent, too.")


class Redelivery(_Body):
    """One of the three."""

    dead: Literal[True] | None = Field(default=None, description="All that is dead.")
    after: Position | None = Field(default=None, description="All that it asks for above it.")
    position: Position | None = Field(default=None, description="This one event.")


class TaskAnswer(BaseModel):
    id: UUID
    version: int
    status: Status
    attempt: int
    position: str = Field(description="Token for `min_position` on the query API.")
    retry_at: datetime | None
    cancel_requested: bool


class BatchItem(BaseModel):
    id: UUID
    version: int
    status: Status
    position: str


class BatchAnswer(BaseModel):
    tasks: list[BatchItem]
    position: str


class StartedTask(BaseModel):
    id: UUID
    attempt: int = Field(description="With the id, the fencing token of whatever the attempt does.")
    version: int
    kind: str
    payload: Any
    queue: str
    priority: Priority
    tags: list[str]
    max_attempts: int
    timeout_seconds: float
    created_at: datetime
    lease_expires_at: datetime
    position: str
    traceparent: str | None


class ClaimAnswer(BaseModel):
    tasks: list[StartedTask]


class LeaseAnswer(BaseModel):
    lease_expires_at: datetime
    cancel_requested: bool


class QueueAnswer(BaseModel):
    queue: str
    paused: bool
    position: str


class WebhookAnswer(BaseModel):
    id: UUID
    url: str
    types: list[str]
    kinds: list[str]
    queues: list[str]
    tags: list[str]
    description: str | None
    status: WebhookStatus
    cause: DisabledCause | None
    position: str = Field(description="Token for `min_position` on the query API.")


class WebhookSecretAnswer(WebhookAnswer):
    secret: str = Field(description="Signs what is sent. Shown this once.")


REQUESTS: Final = (
    NewTask,
    NewTasks,
    Start,
    Claim,
    Completion,
    Failure,
    Heartbeat,
    Because,
    NewWebhook,
    Redelivery,
)
