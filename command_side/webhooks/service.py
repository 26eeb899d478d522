"""Commands to webhooks: load, decide, append."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from command_side.errors import IdempotencyKeyReused, WebhookNotFound
from command_side.service import MAX_DECISIONS, NOBODY, Origin
from command_side.webhooks.webhook import CreateWebhook, WebhookCommand, decide
from events.append import AppendCommand, Appended, IdempotencyKey, RecordedEvent, Replayed, StreamAppend
from events.codec import EventMapper
from events.errors import ConcurrencyConflict
from events.group_commit import GroupCommit
from events.ids import new_uid, new_webhook_id
from events.log import LogReader
from events.records import EventRecord
from events.webhook_events import WebhookCreated, WebhookEvent, WebhookState, webhook_of

_FIRST: Final = 1

History = list[tuple[EventRecord, datetime, int]]


@dataclass(frozen=True, slots=True)
class Changed:
    """The webhook after a command, and the position that a reader must reach to see it."""

    state: WebhookState
    position: int
    replayed: bool = False


class WebhookService:
    def __init__(self, log: LogReader, commits: GroupCommit, mapper: EventMapper) -> None:
        self._log = log
        self._commits = commits
        self._mapper = mapper

    async def create(
        self, command: CreateWebhook, origin: Origin = NOBODY, key: IdempotencyKey | None = None
    ) -> Changed:
        """With a key that was used before: the first answer again, or IdempotencyKeyReused."""
        event = WebhookCreated(
            originator_id=new_webhook_id(),
            originator_version=_FIRST,
            event_uid=new_uid(),
            tenant=origin.tenant,
            by=origin.actor,
            traceparent=origin.traceparent,
            **asdict(command),
        )
        outcome = await self._commits.append(AppendCommand([self._stream(event)], key))
        match outcome:
            case Appended():
                return self._changed([(event, outcome.recorded_at, outcome.last_position)])
            case Replayed() if key is not None and outcome.fingerprint == key.fingerprint:
                return await self._first_answer(outcome.first_position)
            case Replayed():
                raise IdempotencyKeyReused
            case _:
                raise ConcurrencyConflict("a webhook with this id exists already")

    async def execute(self, webhook: UUID, command: WebhookCommand, origin: Origin = NOBODY) -> Changed:
        """Raises what decide() raises, WebhookNotFound, ConcurrencyConflict, StoreUnavailable."""
        for _ in range(MAX_DECISIONS):
            state, recorded = await self._load(webhook, origin.tenant)
            decided = decide(state, command)
            if decided is None:
                return Changed(state, recorded[-1].id)
            cls, own = decided
            event = cls(
                originator_id=webhook,
                originator_version=state.version + 1,
                event_uid=new_uid(),
                tenant=state.tenant,
                by=origin.actor,
                reason=command.reason,
                traceparent=origin.traceparent,
                **own,
            )
            outcome = await self._commits.append(AppendCommand([self._stream(event)]))
            if isinstance(outcome, Appended):
                own_event = (event, outcome.recorded_at, outcome.last_position)
                return self._changed([*self._history(recorded), own_event])
        raise ConcurrencyConflict("the webhook kept changing; try again")

    async def _load(self, webhook: UUID, tenant: str) -> tuple[WebhookState, list[RecordedEvent]]:
        recorded = await self._log.read_stream(webhook)
        state = None
        if recorded and recorded[0].topic == WebhookCreated.TOPIC:
            state = webhook_of(self._history(recorded))
        if state is None or state.tenant != tenant:
            raise WebhookNotFound
        return state, recorded

    async def _first_answer(self, position: int) -> Changed:
        recorded = await self._log.read_after(position - 1, limit=1, upto=position)
        first = self._changed(self._history(recorded))
        return Changed(first.state, first.position, replayed=True)

    def _history(self, recorded: Sequence[RecordedEvent]) -> History:
        return [(self._mapper.decode(event), event.recorded_at, event.id) for event in recorded]

    def _changed(self, history: History) -> Changed:
        state = webhook_of(history)
        if state is None:
            raise WebhookNotFound
        return Changed(state, history[-1][2])

    def _stream(self, event: WebhookEvent) -> StreamAppend:
        return StreamAppend(event.originator_id, [self._mapper.encode(event)], event.tenant)
