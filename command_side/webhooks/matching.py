"""Which events a webhook asks for. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from events.records import topics
from events.task_events import (
    TaskCancelled,
    TaskCompleted,
    TaskDeadLettered,
    TaskDiscarded,
    TaskEvent,
)
from events.webhook_events import WebhookEvent, WebhookState

TASK_TYPES: Final = topics(TaskEvent)
WEBHOOK_TOPICS: Final = topics(WebhookEvent)
DEFAULT_TYPES: Final = tuple(
    cls.TOPIC for cls in (TaskCompleted, TaskDeadLettered, TaskCancelled, TaskDiscarded)
)
"""Those after which no worker touches the task."""


class Seen(NamedTuple):
    """An event as the log's columns tell it, without what it carries."""

    originator_id: UUID
    originator_version: int
    topic: str
    position: int
    tenant: str
    kind: str
    queue: str


@dataclass(frozen=True, slots=True)
class Subscription:
    webhook: UUID
    tenant: str
    types: frozenset[str]
    kinds: frozenset[str]
    queues: frozenset[str]
    tags: frozenset[str]

    @classmethod
    def of(cls, state: WebhookState) -> "Subscription":
        return cls(
            state.id,
            state.tenant,
            frozenset(state.types),
            frozenset(state.kinds),
            frozenset(state.queues),
            frozenset(state.tags),
        )

    def wants(self, event: Seen) -> bool:
        """But for the tags, which the columns do not tell."""
        return (
            event.topic in self.types
            and event.tenant == self.tenant
            and (not self.kinds or event.kind in self.kinds)
            and (not self.queues or event.queue in self.queues)
        )


def tasks_to_tag(subscriptions: Iterable[Subscription], events: Collection[Seen]) -> set[UUID]:
    """The tasks whose tags pairs() needs to know."""
    choosy = [subscription for subscription in subscriptions if subscription.tags]
    return {event.originator_id for event in events if any(s.wants(event) for s in choosy)}


def pairs(
    subscriptions: Collection[Subscription], events: Iterable[Seen], tags: dict[UUID, frozenset[str]]
) -> list[tuple[UUID, Seen]]:
    """Webhook and event, for each event that each of them asks for."""
    none: frozenset[str] = frozenset()
    return [
        (subscription.webhook, event)
        for event in events
        for subscription in subscriptions
        if subscription.wants(event) and subscription.tags <= tags.get(event.originator_id, none)
    ]
