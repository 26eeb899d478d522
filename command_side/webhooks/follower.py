"""Follows the log: what a webhook asks for becomes a delivery, in the statement that moves the checkpoint.

So no event is missed and none is set to be delivered twice, however the process ends. Bodies are no concern
here: most of the log is passed over by its topic alone, and without webhooks all of it.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Final, Protocol
from uuid import UUID

from command_side.terms import Outage, Status
from command_side.webhooks.matching import (
    WEBHOOK_TOPICS,
    Seen,
    Subscription,
    pairs,
    tasks_to_tag,
)
from command_side.webhooks.store import Kept, Move, WebhookStore
from events.codec import EventMapper
from events.errors import CheckpointConflict, LogError, SchemaNotReady, Unavailable, UndecodableEvent
from events.log import LogReader
from events.records import EventRecord
from events.task_events import TaskCreated
from events.webhook_events import (
    WebhookCreated,
    WebhookRedeliveryRequested,
    WebhookTested,
    webhook_of,
)
from taskledger.metrics import CHECKPOINT, HALTED, LAG

POLL_SECONDS: Final = 1.0
GATHER_SECONDS: Final = 0.02
"""Between the beginnings of two turns: under load an append would otherwise cost three statements here."""
WINDOW: Final = 10_000
"""Positions in one read, whatever their events are."""
BATCH: Final = 1_000
"""Events of it that somebody may ask for."""
TAGGED_AT_ONCE: Final = 50
"""Tasks whose creation is read for its tags; each may have a payload of 1 MiB."""
PURGE_SECONDS: Final = 60.0
PURGED_AT_ONCE: Final = 5_000

NAME: Final = "webhooks"


class Endpoints(Protocol):
    def keep(self, kept: Sequence[Kept], changed: Collection[UUID]) -> None:
        """These are the webhooks there are; some of them have changed."""
        ...

    def wake(self, webhooks: Iterable[UUID]) -> None:
        """They have got something to deliver."""
        ...


class Follower:
    """One term of leadership. `wake` is set by whoever hears of new events; `listen` is told whether
    anybody needs to. Raises CheckpointConflict once another process leads, or the log has got another
    tag; LogRewound when it was restored and has not."""

    def __init__(
        self,
        *,
        log: LogReader,
        store: WebhookStore,
        mapper: EventMapper,
        tag: str,
        endpoints: Endpoints,
        status: Status,
        wake: asyncio.Event,
        listen: Callable[[bool], None],
    ) -> None:
        self._log = log
        self._store = store
        self._mapper = mapper
        self._tag = tag
        self._endpoints = endpoints
        self._wake = wake
        self._listen = listen
        self._database = Outage("postgres", status)
        self._unreadable = Outage("log", status)
        self._kept: dict[UUID, Kept] = {}
        self._subscriptions: list[Subscription] = []
        self._stale = True
        """The webhooks are not read, or have changed since: nothing is matched before they are."""
        self._changed: set[UUID] = set()
        self._next_purge = 0.0
        self.checkpoint = 0

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            self._wake.clear()
            more = await self._patiently(self.turn)
            if not more:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)
            await asyncio.sleep(max(0.0, began + GATHER_SECONDS - time.monotonic()))

    async def turn(self) -> bool:
        """One window of the log, and one of what is to be sent again. Whether there is more at once."""
        if await self._store.check_log() != self._tag:
            raise CheckpointConflict("the log has got another tag")
        if self._stale:
            await self._load()
        head, _ = self._store.head
        if head > self.checkpoint:
            await self._follow(head)
        again = False
        for kept in list(self._kept.values()):
            again = await self._again(kept) or again
        await self._purge()
        CHECKPOINT.labels(NAME).set(self.checkpoint)
        LAG.labels(NAME).set(head - self.checkpoint)
        return again or self.checkpoint < head

    async def _patiently(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Its answer; whether to try again at once where the database is away or an event unreadable."""
        try:
            answer = await work()
        except (Unavailable, SchemaNotReady) as error:
            await asyncio.sleep(self._database.goes_on(str(error)))
            return True
        except LogError as error:
            HALTED.labels(NAME).set(1)
            reason = f"a release that can apply the event after position {self.checkpoint}: {error}"
            await asyncio.sleep(self._unreadable.goes_on(reason))
            return True
        self._database.is_over()
        if self._unreadable.on:
            HALTED.labels(NAME).set(0)
            self._unreadable.is_over()
        return answer

    async def _load(self) -> None:
        self.checkpoint = await self._store.checkpoint()
        kept = await self._store.webhooks()
        self._kept = {k.state.id: k for k in kept}
        self._subscriptions = [Subscription.of(k.state) for k in kept]
        self._endpoints.keep(kept, self._changed)
        self._listen(bool(kept))
        self._changed.clear()
        self._stale = False

    async def _follow(self, head: int) -> None:
        upto = min(head, self.checkpoint + WINDOW)
        topics = WEBHOOK_TOPICS.union(*(s.types for s in self._subscriptions))
        events = await self._store.events(self.checkpoint, upto, topics, BATCH)
        if len(events) == BATCH:
            upto = events[-1].position
        ours = next((n for n, event in enumerate(events) if event.topic in WEBHOOK_TOPICS), None)
        if ours is None:
            await self._advance(events, upto)
            return
        # What comes after it is for others than what came before.
        if self.checkpoint < events[ours].position - 1:
            await self._advance(events[:ours], events[ours].position - 1)
        await self._apply(events[ours])

    async def _advance(self, events: Sequence[Seen], upto: int) -> None:
        found = pairs(self._subscriptions, events, await self._tags(self._subscriptions, events))
        head, at = self._store.head
        await self._store.advance(Move(self.checkpoint, upto, at if upto == head else None), found)
        self.checkpoint = upto
        self._endpoints.wake({webhook for webhook, _ in found})

    async def _apply(self, seen: Seen) -> None:
        stream = await self._log.read_stream(seen.originator_id)
        history = [
            (self._mapper.decode(event), event.recorded_at, event.id)
            for event in stream
            if event.originator_version <= seen.originator_version
        ]
        state = webhook_of(history)
        if state is None:
            raise UndecodableEvent(f"webhook {seen.originator_id} has no beginning")
        event = history[-1][0]
        wish = event if isinstance(event, WebhookTested | WebhookRedeliveryRequested) else None
        replay = _replay(event, seen.position)
        await self._store.apply(Move(self.checkpoint, seen.position), state, replay=replay, wish=wish)
        self._changed.add(state.id)
        self._stale = True
        await self._load()

    async def _again(self, kept: Kept) -> bool:
        """A window of what this webhook wants to be sent (again); whether there is more of it."""
        webhook = kept.state.id
        if kept.revive_upto is None and kept.replay is None:
            return False
        if kept.revive_upto is not None:
            await self._store.revive(webhook, kept.revive_upto, BATCH)
        if kept.replay is not None:
            after, upto = kept.replay
            to = min(upto, after + WINDOW)
            events = await self._store.events(after, to, kept.state.types, BATCH)
            if len(events) == BATCH:
                to = events[-1].position
            own = [Subscription.of(kept.state)]
            found = pairs(own, events, await self._tags(own, events))
            await self._store.replayed(webhook, after, to, [seen for _, seen in found])
        self._kept = {k.state.id: k for k in await self._store.webhooks()}
        self._endpoints.wake([webhook])
        return True

    async def _tags(
        self, subscriptions: Sequence[Subscription], events: Sequence[Seen]
    ) -> dict[UUID, frozenset[str]]:
        """Of the tasks that somebody would take for their tags."""
        wanted = sorted(tasks_to_tag(subscriptions, events))
        tags: dict[UUID, frozenset[str]] = {}
        for start in range(0, len(wanted), TAGGED_AT_ONCE):
            for event in await self._store.beginnings(wanted[start : start + TAGGED_AT_ONCE]):
                record = self._mapper.decode(event)
                if isinstance(record, TaskCreated):
                    tags[record.originator_id] = frozenset(record.tags)
        return tags

    async def _purge(self) -> None:
        if time.monotonic() >= self._next_purge:
            more = await self._store.purge(PURGED_AT_ONCE) == PURGED_AT_ONCE
            self._next_purge = time.monotonic() + (POLL_SECONDS if more else PURGE_SECONDS)


def _replay(event: EventRecord, position: int) -> tuple[int, int] | None:
    if not isinstance(event, WebhookCreated | WebhookRedeliveryRequested) or event.after is None:
        return None
    upto = event.upto if isinstance(event, WebhookRedeliveryRequested) else None
    return event.after, min(position, upto or position)
