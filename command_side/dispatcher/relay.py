"""Follows the log: publishes what became queued, and keeps `outstanding`.

What notifications tell whole is published without a read, and read a little later with what follows.

The entries of each batch are published at once; the rows follow with their checkpoint a few times a
second, and until then an overlay has them. A crash in between leaves Redis ahead of the checkpoint: the
next leader reads the queues' positions and passes over what is published, since an entry's id is its
event's position. Whoever reads the table instead is told how far it is (the sweeper), or the overlay is
committed before (a refill of Redis).

Redis behind the checkpoint cannot come from a crash of ours, because a publication that did not surely
succeed makes its queue lag; it comes from a Redis that lost data, and is mended the same way.

While Redis is away the fold goes on, so that the sweeper and the next start have the truth.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Generator, Sequence
from typing import Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from command_side.broker import check_broker
from command_side.dispatcher.histories import RECALL_CHUNK, Histories, readable
from command_side.dispatcher.outstanding import (
    Changes,
    Poison,
    fold,
    tasks_before,
    tasks_to_recall,
)
from command_side.dispatcher.overlay import Overlay
from command_side.dispatcher.publisher import Publisher
from command_side.dispatcher.status import DispatcherStatus
from command_side.dispatcher.store import Identity, OutstandingStore
from command_side.dispatcher.told import Told
from command_side.terms import Outage
from events.append import RecordedEvent
from events.codec import EventMapper
from events.deadline import until
from events.errors import CheckpointConflict, ConfigurationError, LogRewound, SchemaNotReady, Unavailable
from events.log import LogReader
from events.notice import Notice, Queued
from events.witness import WAY_OUT
from taskledger.metrics import CHECKPOINT, LAG
from taskledger.telemetry import get_logger

BATCH: Final = 2_000
FIRST_BATCH: Final = 100
"""Batches grow from here, as their size in bytes allows."""
BATCH_BYTES: Final = 16 * 1024 * 1024
COMMIT_SECONDS: Final = 0.25
"""After the oldest change that `outstanding` lacks, it is brought up to date."""
LEAVE_SECONDS: Final = 1.0
"""What a last commit may take at the end of a term: without it the next leader only reads more."""
FOLD_SECONDS: Final = 0.1
"""What was published as told is read no later than this: nobody but the sweeper, which looks at rows that
are up to COMMIT_SECONDS old, waits for it."""
POLL_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 1.0
"""How often the positions in Redis are read: a loss goes unnoticed no longer than this."""

_logger = get_logger(__name__)


async def take_up(store: OutstandingStore) -> Identity:
    """Where the fold stands and which log it follows; a table folded from another log is emptied.
    Raises LogRewound if the log was restored and still has its old tag."""
    await store.check_log()
    identity = await store.identity()
    if identity.folded_tag != identity.tag:
        if identity.folded_tag is not None:
            _logger.warning("the log was restored: outstanding is folded anew", tag=identity.tag)
        await store.restart()
        identity = await store.identity()
    if identity.head < identity.checkpoint:
        raise LogRewound(
            f"the log ends at {identity.head} and was read up to {identity.checkpoint}: it was restored;"
            f" {WAY_OUT}"
        )
    return identity


class Relay:
    """One term of leadership, from `identity` on. `told` is filled by whoever hears of new events.

    Raises CheckpointConflict once another dispatcher leads, or the log has got another tag; LogRewound
    when it was restored and has not.
    """

    def __init__(
        self,
        *,
        log: LogReader,
        store: OutstandingStore,
        redis: Redis,
        mapper: EventMapper,
        identity: Identity,
        status: DispatcherStatus,
        told: Told,
    ) -> None:
        self._log = log
        self._store = store
        self._redis = redis
        self._mapper = mapper
        self._histories = Histories(log, mapper)
        self._publisher = Publisher(redis, identity.tag, status)
        self._start_head = identity.head
        self._status = status
        self._told = told
        self._limit = min(FIRST_BATCH, BATCH)
        self._reread = False
        self._broker = Outage("redis", status)
        self._broker_checked = False
        self._broker_from = 0.0
        self._next_look = 0.0
        self._next_check = 0.0
        self._next_measure = 0.0
        self._overlay = Overlay()
        self._commit_at = math.inf
        self._wanted = 0
        self._published = identity.checkpoint
        """What is queued up to here was offered to Redis: as read, or beyond that as told."""
        self._relayed = 0
        """Everything up to here that is queued is in Redis, as far as we know."""
        self._tag = identity.tag
        self._database = Outage("postgres", status)
        self.folded = identity.checkpoint
        """Position up to which the log is folded, and what is queued is published."""
        self.checkpoint = status.checkpoint = identity.checkpoint
        """Position at which `outstanding` stands."""
        self.live = asyncio.Event()
        """Set once the fold has reached the head that the log had at the start. Only then is anything
        published: what is behind that is mostly finished by now."""
        status.waiting_for["log"] = f"reading up to position {identity.head}"

    async def run(self) -> None:
        try:
            while True:
                self._told.take()  # what was told before a read is read
                try:
                    more = await self.turn()
                    self._database.is_over()
                except (Unavailable, SchemaNotReady) as error:
                    await asyncio.sleep(self._database.goes_on(str(error)))
                    continue
                if not more:
                    await self._rest()
        except asyncio.CancelledError:
            with (
                until(time.monotonic() + LEAVE_SECONDS),
                contextlib.suppress(CheckpointConflict, Unavailable, SchemaNotReady),
            ):
                await self.commit()
            raise

    async def turn(self) -> bool:
        """One batch, and a little mending in Redis; whether there is more to do at once."""
        await self._check_log()
        if not self._reread:
            await self._reread_unreadable()
            self._reread = True
        limit = self._limit
        events = await self._log.read_after(self.folded, limit=limit)
        if events:
            await self._take(events)
        if not self.live.is_set() and self.folded >= self._start_head:
            self._status.waiting_for.pop("log", None)
            await self.commit()  # for the sweeper, which begins now
            self.live.set()
        if self._must_commit():
            await self.commit()
        lagging = self.live.is_set() and await self._mend()
        if self.live.is_set() and not lagging and not self._broker.on:
            self._relayed = self.folded
        await self._measure()
        return len(events) == limit or lagging

    async def commit(self) -> None:
        """Brings `outstanding` up to what is folded. Raises CheckpointConflict if another one leads."""
        if self.folded > self.checkpoint:
            await self._store.commit(self.checkpoint, self.folded, self._overlay.changes())
            self._overlay.committed()
            self.checkpoint = self._status.checkpoint = self.folded
            self._commit_at = math.inf

    def want(self, position: int) -> None:
        """Somebody waits until `outstanding` is that far: it is brought there as soon as it is folded."""
        self._wanted = max(self._wanted, position)
        if position > self.folded:
            self._told.look()

    def _must_commit(self) -> bool:
        late = time.monotonic() >= self._commit_at
        return late or self._overlay.is_full or self.checkpoint < self._wanted <= self.folded

    async def _rest(self) -> None:
        """Until there is something to read; publishes meanwhile what is told whole."""
        until_ = min(time.monotonic() + POLL_SECONDS, self._commit_at)
        while await self._told.wait(max(0.0, until_ - time.monotonic())):
            queued = self._follow(self._told.take())
            if queued is None:
                return
            if queued:
                with self._broker_errors():
                    await self._publisher.offer(queued)
                if self._publisher.lags or self._broker.on:
                    return
            until_ = min(until_, time.monotonic() + FOLD_SECONDS)

    def _follow(self, notices: Sequence[Notice] | None) -> list[Queued] | None:
        """What they queued, if they go on where we are and Redis keeps up; else the log has to be read."""
        if notices is None or not self.live.is_set() or self._publisher.lags or self._broker.on:
            return None
        queued: list[Queued] = []
        for notice in notices:
            if notice.last > self._published:
                if notice.first != self._published + 1:
                    return None
                queued += notice.queued
                self._published = notice.last
        return queued

    async def _measure(self) -> None:
        """Once a second: also while Redis is away, since that is when it matters."""
        if time.monotonic() < self._next_measure:
            return
        self._next_measure = time.monotonic() + LOOK_SECONDS
        head = await self._log.head()
        for follower, position in (("outstanding", self.folded), ("relay", self._relayed)):
            CHECKPOINT.labels(follower).set(position)
            LAG.labels(follower).set(max(0, head - position))

    async def _check_log(self) -> None:
        if time.monotonic() < self._next_check:
            return
        if await self._store.check_log() != self._tag:
            raise CheckpointConflict("the log has got another tag")
        self._next_check = time.monotonic() + LOOK_SECONDS

    async def _take(self, events: Sequence[RecordedEvent]) -> None:
        self._store.saw(events[-1])
        changes = await self._fold(events)
        self._tell(changes.poison)
        if self.live.is_set() and self._broker_answers():
            with self._broker_errors():
                await self._publisher.offer(changes.queued_after(self.folded))
        self._overlay.add(changes)
        self.folded = events[-1].id
        self._published = max(self._published, self.folded)
        self._commit_at = min(self._commit_at, time.monotonic() + COMMIT_SECONDS)
        self._limit = _next_limit(self._limit, events)

    async def _fold(self, events: Sequence[RecordedEvent]) -> Changes:
        known = tasks_before(events)
        unknown = sorted(self._overlay.unknown(known))
        self._overlay.learn(await self._store.rows(unknown, self.checkpoint))
        rows = self._overlay.rows(known)
        absent = sorted(tasks_to_recall(events, known - rows.keys()))
        return fold(rows, events, self._mapper.decode, await self._histories.recall(absent, self.folded))

    async def _reread_unreadable(self) -> None:
        """Tasks that an earlier release could not read may mean something to this one."""
        beyond: UUID | None = None
        while tasks := await self._store.unreadable(beyond, RECALL_CHUNK):
            beyond = tasks[-1]
            changes = readable(await self._histories.recall(tasks, self.checkpoint))
            if changes.put or changes.gone:
                await self._store.commit(self.checkpoint, self.checkpoint, changes)
                _logger.info("tasks read again", count=len(changes.put) + len(changes.gone))

    async def _mend(self) -> bool:
        """Looks at Redis once a second, and at queues not seen before; helps those that lag. Whether
        there are any left. A Redis that is away is asked again when its pause is over."""
        if not self._broker_answers():
            return False
        with self._broker_errors():
            if not self._broker_checked:
                await check_broker(self._redis)
                self._broker_checked = True
            queues: list[str] = []
            look = time.monotonic() >= self._next_look
            if look or self._publisher.lags:
                await self.commit()  # what the table lacks, a refill would lack
            if look:
                queues = await self._store.queued_queues()
                await self._redis.ping()
                self._next_look = time.monotonic() + LOOK_SECONDS
            try:
                await self._publisher.look(queues, self._log.head, self.folded)
            except LogRewound as error:
                self._store.condemn_log(str(error))
                raise
            await self._publisher.catch_up(self._store, self.checkpoint)
            self._broker.is_over()
            return self._publisher.lags
        return False

    def _broker_answers(self) -> bool:
        return time.monotonic() >= self._broker_from

    @contextlib.contextmanager
    def _broker_errors(self) -> Generator[None]:
        """Redis away, refusing writes (OOM), or not fit: nothing is known of its streams any more."""
        try:
            yield
        except (RedisError, OSError, ConfigurationError) as error:
            reason = str(error) if isinstance(error, ConfigurationError) else type(error).__name__
            self._publisher.forget()
            self._broker_checked = False
            self._next_look = 0.0
            self._broker_from = time.monotonic() + self._broker.goes_on(reason)

    def _tell(self, poison: Sequence[Poison]) -> None:
        for event in poison:
            self._status.poison += 1
            _logger.error(
                "event passed over",
                position=event.position,
                topic=event.topic,
                task=str(event.task_id),
                reason=event.reason,
            )


def _next_limit(limit: int, events: Sequence[RecordedEvent]) -> int:
    """Grows while batches are small in bytes, so that large payloads do not fill the memory."""
    size = sum(len(event.state) for event in events) // len(events) + 1
    return max(1, min(BATCH, 2 * limit, BATCH_BYTES // size))
