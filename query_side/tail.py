"""Follows the end of the log for all live streams together: each new event is read once a process."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Final, Protocol
from uuid import UUID

from events.append import RecordedEvent
from events.errors import LogRewound, StoreUnavailable, TaskledgerError
from events.position import PositionToken
from events.statements import LOG_CHANNEL
from query_side import sse
from query_side.feed import FeedPage, LogFeed, shown
from query_side.feed_filter import FeedFilter
from query_side.listener import Connect, Listener
from query_side.ring import Chunk, Encode, Entry, Ring
from taskledger.telemetry import get_logger

BATCH: Final = 1_000
"""Events a look reads at once; of their states PAGE_BYTES."""
PAGE_BYTES: Final = 2 * 1024 * 1024
MANY: Final = 10
PAUSE_SECONDS: Final = 0.02
"""After a batch of MANY events: under load one read serves several appends."""

_logger = get_logger(__name__)

Waiter = asyncio.Future[int]
"""Its result: a position up to which there is nothing new for who waits."""


class Reader(Protocol):
    def end(self) -> None:
        """The stream is to end, at once."""


class Tail:
    """Reads nothing and has no connection while nobody is there. run() does the following."""

    def __init__(self, feed: LogFeed, connect: Connect) -> None:
        self._feed = feed
        self._wanted = asyncio.Event()
        self._listener = Listener(connect, LOG_CHANNEL, self._look, wanted=self._wanted)
        self._looking = asyncio.Lock()
        self._ring: Ring | None = None
        self._tag = ""
        self._forgotten = 0
        self._readers: dict[Reader, FeedFilter] = {}
        self._by_filter: dict[FeedFilter, set[Waiter]] = {}
        self._by_task: dict[UUID | str, set[Waiter]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        await self._listener.run()

    @property
    def head(self) -> int:
        """The last position that was read; 0 while nothing is followed."""
        return 0 if self._ring is None else self._ring.head

    async def join(self, reader: Reader, wanted: FeedFilter) -> None:
        """From here on the log is followed for the reader, until it leaves. Raises StoreUnavailable if it
        cannot be for now."""
        self._readers[reader] = wanted
        self._wanted.set()
        if self._ring is None:
            await self._look("")
        if self._ring is None:
            raise StoreUnavailable("the log cannot be followed now")

    def leave(self, reader: Reader) -> None:
        self._readers.pop(reader, None)
        if not self._readers:
            self._wanted.clear()
            self._ring = None

    def forget_texts(self) -> None:
        """Text may have been erased: whoever is behind reads the log again."""
        self._forgotten += 1
        if self._ring is not None:
            self._ring.forget()

    def end_all(self) -> None:
        """Every reader is told to end."""
        for reader in list(self._readers):
            reader.end()

    def after(self, position: int, wanted: FeedFilter) -> Chunk | None:
        """As Ring.after()."""
        return None if self._ring is None else self._ring.after(position, wanted)

    def waiter(self, wanted: FeedFilter) -> Waiter:
        """Done once something wanted comes in. Only for who has seen everything up to the head; forget()
        it afterwards."""
        future: Waiter = asyncio.get_running_loop().create_future()
        self._waiters(wanted).setdefault(wanted.task_id or wanted, set()).add(future)
        return future

    def forget(self, wanted: FeedFilter, future: Waiter) -> None:
        waiters, key = self._waiters(wanted), wanted.task_id or wanted
        waiters[key].discard(future)
        if not waiters[key]:
            del waiters[key]

    def _waiters(self, wanted: FeedFilter) -> dict[Any, set[Waiter]]:
        return self._by_filter if wanted.task_id is None else self._by_task

    async def _look(self, _hint: str) -> None:
        async with self._looking:
            try:
                while self._readers and await self._read_on():
                    continue
            except LogRewound as error:
                _logger.warning("streams end: this is no longer the log they follow", reason=str(error))
                self._ring = None
                self.end_all()
            except TaskledgerError as error:
                _logger.debug("cannot follow the log", reason=error.code)

    async def _read_on(self) -> bool:
        """Whether there is more to read now."""
        ring = self._ring
        if ring is None:
            page = await self._feed.page("now", 1)
            if not self._readers:
                return False
            self._tag = page.log.tag
            self._ring = Ring(page.log.checkpoint)
            return False
        forgotten = self._forgotten
        page = await self._feed.page(PositionToken(ring.head, self._tag), BATCH, page_bytes=PAGE_BYTES)
        tagged = any(wanted.tags for wanted in self._readers.values())
        tags = await self._feed.tags_of(page.events) if tagged else None
        if self._ring is not ring or self._forgotten != forgotten:
            return True  # everybody left meanwhile, or the page was opened with keys that are gone
        before = ring.head
        self._wake(before, ring.append(page.events, page.reached, tags, encoder(page)))
        if len(page.events) >= MANY:
            await asyncio.sleep(PAUSE_SECONDS)
        return page.reached < page.log.checkpoint

    def _wake(self, before: int, entries: Sequence[Entry]) -> None:
        for wanted, waiters in self._by_filter.items():
            if any(wanted.matches(entry.event, entry.tags) for entry in entries):
                _finish(waiters, before)
        if self._by_task:
            for entry in entries:
                _finish(self._by_task.get(entry.event.originator_id, ()), before)


def encoder(page: FeedPage) -> Encode:
    """How a stream shows the page's events: as the feed does."""

    def encode(event: RecordedEvent) -> bytes:
        return sse.message(page.log.token_of(event.id), event.topic, shown(event, page))

    return encode


def _finish(waiters: Collection[Waiter], position: int) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(position)
