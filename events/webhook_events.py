"""What can happen to a webhook, and its fold. No event holds a secret: those derive from a setting."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Literal
from uuid import UUID

from events.errors import UndecodableEvent
from events.records import EventRecord

DisabledCause = Literal["asked", "gone", "failing"]
WebhookStatus = Literal["enabled", "disabled", "deleted"]


class WebhookEvent(EventRecord):
    """Root of the webhook's events. Followers that know nothing of webhooks pass over them."""

    tenant: str
    by: str | None = None
    reason: str | None = None


class WebhookCreated(WebhookEvent):
    """From here on the events it asks for are sent to `url`; those above position `after`, too."""

    TOPIC: ClassVar[str] = "WebhookCreated"

    url: str
    types: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    """Any of them; none: all kinds. So for queues."""
    queues: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """The task has all of them."""
    description: str | None = None
    after: int | None = None


class WebhookDeleted(WebhookEvent):
    TOPIC: ClassVar[str] = "WebhookDeleted"


class WebhookDisabled(WebhookEvent):
    """Nothing is sent any more. gone: its endpoint answered 410; failing: nothing was taken for days."""

    TOPIC: ClassVar[str] = "WebhookDisabled"

    cause: DisabledCause


class WebhookEnabled(WebhookEvent):
    TOPIC: ClassVar[str] = "WebhookEnabled"


class WebhookSecretRotated(WebhookEvent):
    """The next generation of its secret; the one before stays valid for a while."""

    TOPIC: ClassVar[str] = "WebhookSecretRotated"


class WebhookTested(WebhookEvent):
    """This very event is sent, whatever the webhook asks for."""

    TOPIC: ClassVar[str] = "WebhookTested"


class WebhookRedeliveryRequested(WebhookEvent):
    """Either all its dead deliveries, or what it asks for in (after, upto]."""

    TOPIC: ClassVar[str] = "WebhookRedeliveryRequested"

    dead: bool = False
    after: int | None = None
    upto: int | None = None


@dataclass(frozen=True, slots=True)
class WebhookState:
    """A webhook as of one event."""

    id: UUID
    version: int
    position: int
    tenant: str
    url: str
    types: tuple[str, ...]
    kinds: tuple[str, ...]
    queues: tuple[str, ...]
    tags: tuple[str, ...]
    description: str | None
    created_at: datetime
    created_position: int
    changed_at: datetime
    status: WebhookStatus = "enabled"
    cause: DisabledCause | None = None
    generation: int = 1
    """Of its secret."""
    rotated_at: datetime | None = None


def webhook_of(history: Iterable[tuple[EventRecord, datetime, int]]) -> WebhookState | None:
    """The fold of a webhook's own events (event, at, position), in order; None for none, or for the
    events of another aggregate. Raises UndecodableEvent where versions do not follow each other."""
    state: WebhookState | None = None
    for event, at, position in history:
        if state is None:
            if not isinstance(event, WebhookCreated):
                return None
            state = _created(event, at, position)
        elif event.originator_version != state.version + 1:
            raise UndecodableEvent(f"webhook {state.id}: a version is missing after {state.version}")
        else:
            state = replace(_after(state, event, at), version=state.version + 1, position=position)
    return state


def _after(state: WebhookState, event: EventRecord, at: datetime) -> WebhookState:
    match event:
        case WebhookDeleted():
            return replace(state, status="deleted", cause=None, changed_at=at)
        case WebhookDisabled():
            return replace(state, status="disabled", cause=event.cause, changed_at=at)
        case WebhookEnabled():
            return replace(state, status="enabled", cause=None, changed_at=at)
        case WebhookSecretRotated():
            return replace(state, generation=state.generation + 1, rotated_at=at, changed_at=at)
        case WebhookTested() | WebhookRedeliveryRequested():
            return state
        case _:
            raise UndecodableEvent(f"{type(event).__name__} cannot follow in a webhook's history")


def _created(event: WebhookCreated, at: datetime, position: int) -> WebhookState:
    return WebhookState(
        id=event.originator_id,
        version=event.originator_version,
        position=position,
        tenant=event.tenant,
        url=event.url,
        types=event.types,
        kinds=event.kinds,
        queues=event.queues,
        tags=event.tags,
        description=event.description,
        created_at=at,
        created_position=position,
        changed_at=at,
    )
