"""Questions answered from the log itself: what happened, and how a task was then."""

from collections.abc import Sequence
from uuid import UUID

import psycopg

from events.append import RecordedEvent
from events.errors import SchemaNotReady, UndecodableEvent, UnknownEvent
from events.ids import DEFAULT_TENANT
from events.position import PositionToken
from events.task_state import TaskState, evolve
from events.vault import OFF, Decoder, Vault
from query_side.errors import AsOfOutOfReach, TaskNotFound
from query_side.feed import FeedStart, within
from query_side.moments import AsOf, Moments
from query_side.read_model import ReadModel, Row, Snapshot, statement
from query_side.shapes import Json, event_json, recorded, task_of_state


class History:
    """Independent of the projector: every answer is as new as the log."""

    def __init__(self, model: ReadModel, moments: Moments, vault: Vault = OFF) -> None:
        self._model = model
        self._moments = moments
        self._vault = vault

    async def as_of(self, task_id: UUID, when: AsOf) -> tuple[Snapshot, Json]:
        """The task as of its last event up to the moment; without progress, which is in no event.

        Raises what Moments.find() does, TaskNotFound if it was not created by then, and AsOfOutOfReach
        where this release cannot apply one of its events.
        """
        moment = await self._moments.find(when)
        log, events = await self.stream(task_id)
        then = [event for event in events if event.id <= moment.position]
        if not then:
            raise TaskNotFound(
                f"there was no task with this id yet: it was created at {log.token_of(events[0].id)}"
            )
        state = fold(await self._vault.decoder(then), then, log.tag)
        return moment.snapshot, task_of_state(state, log.tag)

    async def events(self, task_id: UUID, after: FeedStart = "start") -> tuple[Snapshot, list[Json]]:
        """The task's events in order, those after a position. Raises TaskNotFound; LogRewound, and
        ReadModelLagging for a position that the log has not reached."""
        log, events = await self.stream(task_id)
        start = within(after, log) if isinstance(after, PositionToken) else 0
        shown = [] if after == "now" else [event for event in events if event.id > start]
        decoder = await self._vault.decoder(shown)
        return log, [event_json(event, log.tag, decoder) for event in shown]

    async def stream(self, task_id: UUID) -> tuple[Snapshot, list[RecordedEvent]]:
        """The task's events by rising version, at least one. Raises TaskNotFound."""
        log, rows = await self._read("stream", {"id": task_id})
        if not rows or rows[0]["topic"] != "TaskCreated":  # another aggregate's id is no task's
            raise TaskNotFound
        return log, [recorded(row) for row in rows]

    async def _read(self, name: str, parameters: Json) -> tuple[Snapshot, list[Row]]:
        """The rows, and the log's own head as the checkpoint of what they show."""
        try:
            rows = await self._model.read(statement(name), {**parameters, "tenant": DEFAULT_TENANT})
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise SchemaNotReady("the database has not been migrated: run `taskledger migrate`") from error
        log = Snapshot(int(rows[0]["head"]), str(rows[0]["tag"]))
        return log, [row for row in rows if row["present"]]


def fold(decoder: Decoder, events: Sequence[RecordedEvent], tag: str) -> TaskState:
    """Of at least one event. Raises AsOfOutOfReach where this release cannot apply one of them."""
    state: TaskState | None = None
    for event in events:
        try:
            state = evolve(state, decoder.decode(event), at=event.recorded_at, position=event.id)
        except (UnknownEvent, UndecodableEvent) as error:
            at = PositionToken(event.id, tag)
            raise AsOfOutOfReach(f"this release cannot apply the task's event at {at}") from error
    assert state is not None  # noqa: S101  there was an event
    return state
