"""Which events of the log a reader of the feed wants. Pure."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from events.append import RecordedEvent

Tags = Mapping[UUID | str, frozenset[str]]
"""By aggregate."""
NO_TAGS: Final[frozenset[str]] = frozenset()

LAST_TYPES: Final = frozenset({"TaskCompleted", "TaskDiscarded"})
"""After one of these no event of its task can follow. Dead and cancelled tasks may be requeued."""


@dataclass(frozen=True, slots=True)
class FeedFilter:
    """All that is set must hold; of `types` one. Tags are the task's own, from its creation: they hold
    for each of its events. Equal filters are one key, so that readers who want the same share the work.
    """

    kind: str | None = None
    queue: str | None = None
    tags: frozenset[str] = NO_TAGS
    types: frozenset[str] = NO_TAGS
    task_id: UUID | None = None

    def matches(self, event: RecordedEvent, tags: AbstractSet[str] | None) -> bool:
        """`tags`: of the event's task, needed only if the filter names any."""
        return (
            (self.task_id is None or event.originator_id == self.task_id)
            and (self.kind is None or event.kind == self.kind)
            and (self.queue is None or event.queue == self.queue)
            and (not self.types or event.topic in self.types)
            and (not self.tags or (tags is not None and self.tags <= tags))
        )

    def parameters(self) -> dict[str, Any]:
        """Of sql/feed.sql, which does all but the tags."""
        return {"kind": self.kind, "queue": self.queue, "types": sorted(self.types) or None}


EVERYTHING: Final = FeedFilter()
