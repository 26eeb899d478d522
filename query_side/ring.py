"""The end of the log in memory, for all streams that are close to it. Pure."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from events.append import RecordedEvent
from query_side.feed_filter import LAST_TYPES, FeedFilter, Tags

MOST_EVENTS: Final = 5_000
MOST_BYTES: Final = 8 * 1024 * 1024
"""Of stored states. What is shown of an event is about as large, and made once a stream wants it."""
CHUNK_BYTES: Final = 64 * 1024
"""What a stream takes at once, unless a single event is larger."""

MOST_TAKEN: Final = 64
"""Chunks kept for whoever wants the same: streams that are close to the head mostly do."""

Encode = Callable[[RecordedEvent], bytes]


@dataclass(frozen=True, slots=True)
class Chunk:
    data: bytes
    """Whole events, encoded."""
    reached: int
    """The position up to which nothing that is wanted is missing once `data` has been given."""
    over: bool = False
    """Of one task: nothing can follow."""


class Entry:
    """An event that is encoded once, for whoever wants it, or never."""

    __slots__ = ("_encode", "_encoded", "event", "tags")

    def __init__(self, event: RecordedEvent, tags: frozenset[str] | None, encode: Encode) -> None:
        self.event = event
        self.tags = tags
        """None: nobody asked for tags when it came."""
        self._encode = encode
        self._encoded: bytes | None = None

    @property
    def encoded(self) -> bytes:
        if self._encoded is None:
            self._encoded = self._encode(self.event)
        return self._encoded


class Ring:
    """Holds every event above `floor` up to `head`."""

    def __init__(self, position: int) -> None:
        self.floor = self.head = position
        self._entries: list[Entry] = []
        self._positions: list[int] = []
        self._bytes = 0
        self._taken: dict[tuple[FeedFilter, int], Chunk] = {}

    def append(
        self, events: Sequence[RecordedEvent], reached: int, tags: Tags | None, encode: Encode
    ) -> list[Entry]:
        """Events above the head, up to `reached`. The oldest make room for them."""
        added = [
            Entry(event, None if tags is None else tags[event.originator_id], encode) for event in events
        ]
        self._entries += added
        self._positions += [event.id for event in events]
        self._bytes += sum(len(event.state) for event in events)
        self.head = reached
        self._taken.clear()
        self._make_room()
        return added

    def forget(self) -> None:
        """From here on it begins at its head."""
        self.floor, self._bytes = self.head, 0
        self._entries.clear()
        self._positions.clear()
        self._taken.clear()

    def after(self, position: int, wanted: FeedFilter) -> Chunk | None:
        """What is wanted above the position, as much as a stream takes at once. None: ask the log, as this
        begins later or does not know the tags. Streams that want the same from the same place share it."""
        if position < self.floor:
            return None
        key = (wanted, position)
        if key not in self._taken:
            chunk = self._chunk(position, wanted)
            if chunk is None:
                return None
            if len(self._taken) >= MOST_TAKEN:
                self._taken.clear()
            self._taken[key] = chunk
        return self._taken[key]

    def _chunk(self, position: int, wanted: FeedFilter) -> Chunk | None:
        parts: list[bytes] = []
        size = 0
        for at in range(bisect_right(self._positions, position), len(self._entries)):
            entry = self._entries[at]
            if wanted.tags and entry.tags is None:
                return None
            if not wanted.matches(entry.event, entry.tags):
                continue
            parts.append(entry.encoded)
            size += len(entry.encoded)
            if wanted.task_id is not None and entry.event.topic in LAST_TYPES:
                return Chunk(b"".join(parts), entry.event.id, over=True)
            if size >= CHUNK_BYTES:
                return Chunk(b"".join(parts), entry.event.id)
        return Chunk(b"".join(parts), max(self.head, position))

    def _make_room(self) -> None:
        gone = 0
        while len(self._entries) - gone > MOST_EVENTS or self._bytes > MOST_BYTES:
            self._bytes -= len(self._entries[gone].event.state)
            gone += 1
        if gone:
            self.floor = self._positions[gone - 1]
            del self._entries[:gone], self._positions[:gone]
