"""The Webhook aggregate's `decide`. Pure: no I/O, clock or random source."""

from dataclasses import dataclass
from typing import Any

from command_side.errors import WebhookNotFound, WrongState
from events.webhook_events import (
    DisabledCause,
    WebhookDeleted,
    WebhookDisabled,
    WebhookEnabled,
    WebhookEvent,
    WebhookRedeliveryRequested,
    WebhookSecretRotated,
    WebhookState,
    WebhookTested,
)


@dataclass(frozen=True, slots=True)
class CreateWebhook:
    url: str
    types: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    description: str | None = None
    after: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteWebhook:
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class DisableWebhook:
    cause: DisabledCause = "asked"
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class EnableWebhook:
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RotateSecret:
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SendTest:
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Redeliver:
    """All that is dead, or what was asked for in (after, upto]."""

    dead: bool = False
    after: int | None = None
    upto: int | None = None
    reason: str | None = None


WebhookCommand = DeleteWebhook | DisableWebhook | EnableWebhook | RotateSecret | SendTest | Redeliver


def decide(
    state: WebhookState, command: WebhookCommand
) -> tuple[type[WebhookEvent], dict[str, Any]] | None:
    """The event's class and its own fields; None where the command's effect holds already. Raises
    WebhookNotFound for what is deleted, WrongState for what a disabled one cannot do."""
    if state.status == "deleted":
        if isinstance(command, DeleteWebhook):
            return None
        raise WebhookNotFound
    match command:
        case DeleteWebhook():
            return WebhookDeleted, {}
        case DisableWebhook():
            return None if state.status == "disabled" else (WebhookDisabled, {"cause": command.cause})
        case EnableWebhook():
            return None if state.status == "enabled" else (WebhookEnabled, {})
        case RotateSecret():
            return WebhookSecretRotated, {}
        case SendTest():
            _must_be_enabled(state)
            return WebhookTested, {}
        case Redeliver():
            _must_be_enabled(state)
            own = {"dead": command.dead, "after": command.after, "upto": command.upto}
            return WebhookRedeliveryRequested, own


def _must_be_enabled(state: WebhookState) -> None:
    if state.status != "enabled":
        raise WrongState("the webhook is disabled; enable it first")
