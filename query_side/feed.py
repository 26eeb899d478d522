"""Pages of the log after a position: what the feed gives at once, and what a stream reads while behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import psycopg

from events.append import RecordedEvent
from events.codec import EventMapper, is_task_topic
from events.errors import ReadModelLagging, SchemaNotReady
from events.ids import DEFAULT_TENANT
from events.position import PositionToken
from events.statements import HIGHEST
from events.vault import OFF, Decoder, Vault
from events.witness import Witness
from query_side.errors import TaskNotFound
from query_side.feed_filter import EVERYTHING, LAST_TYPES, FeedFilter, Tags
from query_side.read_model import ReadModel, Row, Snapshot, statement
from query_side.shapes import Json, feed_json, recorded
from query_side.task_tags import TaskTags

PAGE_BYTES: Final = 8 * 1024 * 1024
"""Of stored states. One event is given whatever its size."""
STRETCH: Final = 10_000
"""Positions that one page looks at, whether they match or not: about 20 ms of the database's time."""
TAGGED: Final = 500
"""Events of a page whose tags are looked at, where tags are asked for: they are no columns of the log."""

FeedStart = Literal["start", "now"] | PositionToken
_STARTS: Final = {"start": 0, "now": HIGHEST}


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Events by rising position: all that match between the position asked for and `reached`."""

    log: Snapshot
    """With the log's own head as the checkpoint."""
    events: Sequence[RecordedEvent]
    reached: int
    tags: Tags | None
    """Of the events' tasks, if the filter asks for any."""
    decoder: Decoder
    """Of the events, opened where they are sealed."""
    over: bool = False
    """Of one task: nothing can follow any more."""


class LogFeed:
    """Independent of the projector: every page is as new as the log. A log that was restored behind this
    process's back is refused, not misread: see events.witness."""

    def __init__(self, model: ReadModel, mapper: EventMapper, vault: Vault = OFF) -> None:
        self._model = model
        self._vault = vault
        self._tags = TaskTags(model, mapper)
        self._witness = Witness()

    async def page(
        self,
        after: FeedStart,
        limit: int,
        wanted: FeedFilter = EVERYTHING,
        *,
        page_bytes: int | None = None,
    ) -> FeedPage:
        """Raises LogRewound, ReadModelLagging for a position that the log has not reached,
        StoreUnavailable, and TaskNotFound if the filter is for a task that there is not."""
        start = after.position if isinstance(after, PositionToken) else _STARTS[after]
        upto = min(start + STRETCH, HIGHEST)
        most = max(limit, TAGGED) if wanted.tags else limit
        log, rows = await self._read(
            {"after": start, "upto": upto, "limit": most, "page_bytes": page_bytes or PAGE_BYTES}, wanted
        )
        if isinstance(after, PositionToken):
            within(after, log)
        if wanted.task_id is not None and not is_task_topic(rows[0]["last_topic"] or ""):
            raise TaskNotFound
        found = [row for row in rows if row["present"]]
        events = [recorded(row) for row in found]
        if found and (len(found) == most or len(found) < found[0]["matched"]):
            reached = events[-1].id
        else:
            reached = log.checkpoint if wanted.task_id is not None else min(upto, log.checkpoint)
        tags = None
        if wanted.tags:
            tags = await self._tags.of(events)
            events = [event for event in events if wanted.matches(event, tags[event.originator_id])]
            if len(events) > limit:
                events = events[:limit]
                reached = events[-1].id
        over = (
            wanted.task_id is not None and reached == log.checkpoint and rows[0]["last_topic"] in LAST_TYPES
        )
        return FeedPage(log, events, reached, tags, await self._vault.decoder(events), over)

    async def tags_of(self, events: Sequence[RecordedEvent]) -> Tags:
        return await self._tags.of(events)

    async def _read(self, parameters: dict[str, Any], wanted: FeedFilter) -> tuple[Snapshot, list[Row]]:
        """At least one row, which may hold no event."""
        mark = self._witness.mark()
        parameters |= {"tenant": DEFAULT_TENANT, "seen": mark.position}
        if wanted.task_id is None:
            text, parameters = statement("feed"), parameters | wanted.parameters()
        else:
            text, parameters = statement("task_feed"), parameters | {"task_id": wanted.task_id}
        try:
            rows = await self._model.read(text, parameters)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise SchemaNotReady("the database has not been migrated: run `taskledger migrate`") from error
        first = rows[0]
        self._witness.check((first["tag"], first["head"], first["head_at"], first["seen_at"]), mark)
        return Snapshot(int(first["head"]), str(first["tag"])), rows


def shown(event: RecordedEvent, page: FeedPage) -> Json:
    """As the API promises it."""
    return feed_json(event, page.log.tag, page.decoder)


def within(token: PositionToken, log: Snapshot) -> int:
    """The position. Raises LogRewound for another log's, ReadModelLagging for one beyond its head."""
    position = token.of_log(log.tag)
    if position > log.checkpoint:
        raise ReadModelLagging("the log has not reached the position yet")
    return position
