"""Which tags a task has. Only its creation says so, and they never change."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from events.append import RecordedEvent
from events.codec import EventMapper
from events.errors import UndecodableEvent, UnknownEvent
from events.task_events import TaskCreated
from query_side.feed_filter import NO_TAGS, Tags
from query_side.read_model import ReadModel, statement
from query_side.shapes import recorded

MAX_KNOWN: Final = 20_000
"""Tasks; about 5 MB."""
PAGE_BYTES: Final = 4 * 1024 * 1024

_FIELD: Final = b'"tags":'
"""The codec writes compact JSON, and no field that equals its default."""


class TaskTags:
    """Remembers those seen last; looks the others up in the log, all of one call together."""

    def __init__(self, model: ReadModel, mapper: EventMapper) -> None:
        self._model = model
        self._mapper = mapper
        self._known: OrderedDict[UUID | str, frozenset[str]] = OrderedDict()

    async def of(self, events: Sequence[RecordedEvent]) -> Tags:
        """For each event's aggregate. Queues have none. Raises StoreUnavailable."""
        found: dict[UUID | str, frozenset[str]] = {}
        for event in events:
            if event.topic == "TaskCreated":
                found[event.originator_id] = self._read(event)
            elif event.originator_id in self._known:
                self._known.move_to_end(event.originator_id)
                found[event.originator_id] = self._known[event.originator_id]
        unknown = {event.originator_id for event in events} - found.keys()
        if unknown:
            found |= await self._look_up(unknown)
        self._remember(found)
        return found

    async def _look_up(self, ids: set[UUID | str]) -> dict[UUID | str, frozenset[str]]:
        found: dict[UUID | str, frozenset[str]] = {}
        while missing := ids - found.keys():
            parameters = {"ids": list(missing), "page_bytes": PAGE_BYTES}
            rows = await self._model.read(statement("created"), parameters)
            for row in rows:
                found[row["originator_id"]] = NO_TAGS if row["state"] is None else self._read(recorded(row))
            if not rows:
                found |= dict.fromkeys(missing, NO_TAGS)
        return found

    def _read(self, event: RecordedEvent) -> frozenset[str]:
        if _FIELD not in event.state:
            return NO_TAGS
        try:
            record = self._mapper.decode(event)
        except (UnknownEvent, UndecodableEvent):
            return NO_TAGS
        return frozenset(record.tags) if isinstance(record, TaskCreated) else NO_TAGS

    def _remember(self, found: Tags) -> None:
        self._known.update(found)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
