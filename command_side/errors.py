"""Why a command is refused. All are expected: they answer the client and page nobody.

CommandRejected
├── TaskNotFound          404  no task has this id
├── WrongState            409  the task's status does not allow the command
├── AttemptSuperseded     409  the attempt is not, or no longer, the running one
├── UnknownKind           422  no registered handler and no external kind has this name
├── MalformedKey          400  what should be an idempotency key is none
├── IdempotencyKeyReused  422  the key came before with another request
├── InvalidCommand        422  well-formed, but not something the service can store or do
├── WebhookNotFound       404  no webhook has this id
├── WebhookUrlNotAllowed  422  nothing may be sent there
├── TooManyWebhooks       409  as many as there may be exist
└── WebhooksNotConfigured 501  there is no secret to sign with
"""

from dataclasses import dataclass

from events.errors import CommandRejected


class TaskNotFound(CommandRejected):
    code = "task_not_found"
    status = 404

    def __init__(self) -> None:
        super().__init__("there is no task with this id")


class WrongState(CommandRejected):
    code = "wrong_state"
    status = 409


class AttemptSuperseded(CommandRejected):
    """Whoever holds the attempt must stop: nothing it does will be recorded."""

    code = "attempt_superseded"
    status = 409

    def __init__(self, attempt: int, current: int) -> None:
        super().__init__(f"attempt {attempt} is not running any more; the task is at attempt {current}")
        self.attempt = attempt
        self.current = current


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with a request: where (a JSON Pointer) and what, never the value itself."""

    location: str
    message: str


class UnknownKind(CommandRejected):
    code = "unknown_kind"
    status = 422

    def __init__(self, detail: str, violations: tuple[Violation, ...] = ()) -> None:
        super().__init__(detail)
        self.violations = violations


class MalformedKey(CommandRejected):
    code = "invalid_idempotency_key"
    status = 400

    def __init__(self) -> None:
        super().__init__("an idempotency key is one header of 1 to 255 visible ASCII characters")


class IdempotencyKeyReused(CommandRejected):
    code = "idempotency_key_reused"
    status = 422

    def __init__(self) -> None:
        super().__init__("the idempotency key was used before with another request")


class InvalidCommand(CommandRejected):
    code = "invalid_request"
    status = 422

    def __init__(self, detail: str, violations: tuple[Violation, ...] = ()) -> None:
        super().__init__(detail)
        self.violations = violations


class WebhookNotFound(CommandRejected):
    code = "webhook_not_found"
    status = 404

    def __init__(self) -> None:
        super().__init__("there is no webhook with this id")


class WebhookUrlNotAllowed(CommandRejected):
    """`reason` says what the URL must be, and repeats nothing of it."""

    code = "webhook_url_not_allowed"
    status = 422

    def __init__(self, reason: str) -> None:
        super().__init__("nothing may be sent to this URL")
        self.reason = reason
        self.violations = (Violation("/url", reason),)


class TooManyWebhooks(CommandRejected):
    code = "too_many_webhooks"
    status = 409

    def __init__(self, most: int) -> None:
        super().__init__(f"there are {most} webhooks already; delete one first")


class WebhooksNotConfigured(CommandRejected):
    code = "webhooks_not_configured"
    status = 501

    def __init__(self) -> None:
        super().__init__(
            "webhooks want a secret to sign with: TASKLEDGER__WEBHOOKS__SECRET_FILE is not set"
        )
