"""One live stream: first what it missed, from the log in pages; then what comes, from the shared tail."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

from events.deadline import remaining
from events.errors import LogRewound, StoreUnavailable, TaskledgerError
from events.position import PositionToken
from query_side import sse
from query_side.errors import TooManyStreams
from query_side.feed import FeedPage, FeedStart, LogFeed
from query_side.feed_filter import FeedFilter
from query_side.ring import CHUNK_BYTES, Chunk
from query_side.tail import Tail, Waiter, encoder
from taskledger.metrics import STREAMS
from taskledger.telemetry import get_logger

PIECE_BYTES: Final = 64 * 1024
"""Written at once; the next piece waits until the client's buffers have taken this one."""
PAGE_EVENTS: Final = 200
PAGE_BYTES: Final = CHUNK_BYTES
"""Of one page of the log, for a stream that is behind. That and a piece is what a stream holds."""
PAGES_AT_ONCE: Final = 2
"""All streams that begin or are behind read with so many connections together, one after another: requests
need the others, and a thousand clients that come back at once are not to be refused."""
BEGIN_SECONDS: Final = 30.0
"""How long a stream may wait for its first page: an EventSource that is refused does not come back."""
RETRY_MILLISECONDS: Final = (1_000, 3_000)
"""How soon a client is to come back; drawn for each, so that not all return to a new process at once."""
NOTHING: Final = Chunk(b"", 0)
_TROUBLE_SECONDS: Final = 1.0

_logger = get_logger(__name__)


class Streams:
    """Opens streams, at most `most` at a time, and ends them."""

    def __init__(self, feed: LogFeed, tail: Tail, *, most: int, heartbeat_seconds: float) -> None:
        self._feed = feed
        self._tail = tail
        self._most = most
        self._heartbeat = heartbeat_seconds
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)
        self._open = 0
        self._closed = False

    @asynccontextmanager
    async def open(self, after: FeedStart, wanted: FeedFilter) -> AsyncGenerator["LiveStream"]:
        """Raises TooManyStreams, and as LogFeed.page() and Tail.join()."""
        if self._open >= self._most or self._closed:
            raise TooManyStreams
        self._open += 1
        stream = LiveStream(self._feed, self._tail, self._pages, wanted, self._heartbeat)
        STREAMS.set(self._open)
        try:
            await stream.begin(after)
            if self._closed:  # meanwhile
                stream.end()
            yield stream
        finally:
            self._tail.leave(stream)
            self._open -= 1
            STREAMS.set(self._open)

    def close(self) -> None:
        """The process is stopping: all streams end."""
        self._closed = True
        self._tail.end_all()


class LiveStream:
    """Holds one chunk of events at a time, however far behind its client is: the log is the buffer."""

    def __init__(
        self, feed: LogFeed, tail: Tail, pages: asyncio.Semaphore, wanted: FeedFilter, heartbeat: float
    ) -> None:
        self._feed = feed
        self._tail = tail
        self._pages = pages
        self._wanted = wanted
        self._heartbeat = heartbeat
        self._tag = ""
        self._first = NOTHING
        self._reached = 0
        self._ended = asyncio.Event()
        self._waiter: Waiter | None = None
        self.on_end: Callable[[], None] | None = None
        """Called when the stream is told to end: for a writer that waits for its client."""

    @property
    def token(self) -> str:
        """Nothing that is wanted is missing up to here."""
        return str(PositionToken(self._reached, self._tag))

    @property
    def finished(self) -> bool:
        """There is nothing to give and never will be."""
        return self._first.over and not self._first.data

    async def begin(self, after: FeedStart) -> None:
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                page = await self._page(after)
        except TimeoutError:
            raise StoreUnavailable("too many streams begin at once") from None
        self._tag = page.log.tag
        self._first = self._chunk_of(page)
        start = after.position if isinstance(after, PositionToken) else {"start": 0}.get(after)
        self._reached = page.reached if start is None else start
        await self._tail.join(self, self._wanted)

    def end(self) -> None:
        self._ended.set()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(0)
        if self.on_end is not None:
            self.on_end()

    async def pieces(self) -> AsyncGenerator[bytes]:
        """What to write, until the stream is told to end or nothing can follow."""
        yield sse.opening(self.token, random.randint(*RETRY_MILLISECONDS))  # noqa: S311  jitter
        beat = time.monotonic() + self._heartbeat
        chunk: Chunk | None = self._first
        self._first = NOTHING
        while not self._ended.is_set():
            if chunk is None:
                chunk = await self._catch_up()
            for at in range(0, len(chunk.data), PIECE_BYTES):
                yield chunk.data[at : at + PIECE_BYTES]
            self._reached = chunk.reached
            if chunk.over:
                return
            now = time.monotonic()
            if chunk.data:
                beat = now + self._heartbeat
            elif now >= beat:
                beat = now + self._heartbeat
                yield sse.position(self.token)
            chunk = None  # not to be kept while there is nothing to do
            if self._reached >= self._tail.head:
                await self._wait(beat)
            chunk = self._tail.after(self._reached, self._wanted)

    async def _catch_up(self) -> Chunk:
        """The next page of the log. While there is no answer the stream stays where it is: a client that
        was sent away would find the same database."""
        try:
            page = await self._page(PositionToken(self._reached, self._tag))
        except LogRewound:
            self.end()
        except TaskledgerError as error:
            _logger.debug("a stream cannot catch up", reason=error.code)
            await _set_within(self._ended, random.uniform(0, _TROUBLE_SECONDS))  # noqa: S311  jitter
        else:
            return self._chunk_of(page)
        return Chunk(b"", self._reached)

    async def _page(self, after: FeedStart) -> FeedPage:
        async with self._pages:
            return await self._feed.page(after, PAGE_EVENTS, self._wanted, page_bytes=PAGE_BYTES)

    def _chunk_of(self, page: FeedPage) -> Chunk:
        encode = encoder(page)
        return Chunk(b"".join(map(encode, page.events)), page.reached, page.over)

    async def _wait(self, deadline: float) -> None:
        """Until something wanted comes in, or the deadline: then there is nothing up to the tail's head."""
        if self._ended.is_set():
            return
        self._waiter = waiter = self._tail.waiter(self._wanted)
        try:
            await asyncio.wait({waiter}, timeout=remaining(deadline))
        finally:
            self._tail.forget(self._wanted, waiter)
            self._waiter = None
        seen = waiter.result() if waiter.done() else self._tail.head
        self._reached = max(self._reached, seen)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
