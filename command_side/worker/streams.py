"""Which streams a worker reads and in which order. Pure."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from events.ids import parse_task_id
from events.task_events import Priority
from taskledger.redis import LANES, stream_key

LOWEST_FIRST_EVERY: Final = 10
"""Reads: so often the lowest lane is asked first, so that a busy high lane starves nobody."""


@dataclass(frozen=True, slots=True)
class Stream:
    key: str
    queue: str
    kind: str
    priority: Priority


@dataclass(frozen=True, slots=True)
class Entry:
    """A task's place in a stream: `<position>-1`, with nothing but the task's id."""

    stream: Stream
    id: str
    task_id: UUID | None
    """None where the entry holds no task id: nothing of ours has written it."""


def streams_of(queues: Collection[str], kinds: Collection[str]) -> list[Stream]:
    """Any kind may be sent to any queue."""
    return [
        Stream(stream_key(queue, kind, priority), queue, kind, priority)
        for priority in LANES
        for queue in queues
        for kind in kinds
    ]


def entry_of(stream: Stream, entry_id: str, fields: Mapping[str, Any] | None) -> Entry:
    """`fields` is None for a pending entry that has been deleted from its stream."""
    text = (fields or {}).get("task")
    return Entry(stream, entry_id, parse_task_id(text) if isinstance(text, str) else None)


class Lanes:
    """The order of reads: by priority; within a lane, the stream asked first changes each time."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._lanes = [deque(s for s in streams if s.priority == lane) for lane in LANES]
        self._reads = 0

    def next(self, paused: Collection[str]) -> list[list[Stream]]:
        """Lanes to ask one after the other, without the streams of paused queues."""
        self._reads += 1
        order = self._lanes if self._reads % LOWEST_FIRST_EVERY else self._lanes[::-1]
        for lane in order:
            lane.rotate(-1)
        return [[s for s in lane if s.queue not in paused] for lane in order]


class Backlog:
    """Entries in this consumer's pending list that have not started: read beyond the free slots, or
    of a paused queue. Only a convenience: when the process ends, others claim them."""

    def __init__(self) -> None:
        self._ready: deque[Entry] = deque()
        self._aside: dict[tuple[str, str], list[Entry]] = {}
        self._held: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def ready(self) -> int:
        return len(self._ready)

    @property
    def paused(self) -> list[tuple[str, str]]:
        """(tenant, queue) pairs that have entries aside."""
        return list(self._aside)

    def add(self, entries: Collection[Entry]) -> None:
        """Those already here are left out: a pending entry may be read or claimed again."""
        for entry in entries:
            if _name(entry) not in self._held:
                self._held.add(_name(entry))
                self._ready.append(entry)

    def take(self, count: int) -> list[Entry]:
        """The caller gives each back: with settle(), set_aside() or retry()."""
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    def settle(self, entries: Collection[Entry]) -> None:
        self._held.difference_update(_name(entry) for entry in entries)

    def retry(self, entries: Collection[Entry]) -> None:
        self._ready.extendleft(reversed(list(entries)))

    def set_aside(self, tenant: str, queue: str, entry: Entry) -> None:
        self._aside.setdefault((tenant, queue), []).append(entry)

    def resume(self, paused: Collection[tuple[str, str]]) -> None:
        """Makes ready what is not paused any more."""
        for pair in [pair for pair in self._aside if pair not in paused]:
            self._ready.extend(self._aside.pop(pair))


def _name(entry: Entry) -> tuple[str, str]:
    return entry.stream.key, entry.id
