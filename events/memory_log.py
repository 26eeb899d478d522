"""The log in memory, for unit tests: the semantics of the append function without a server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from events.append import (
    AppendCommand,
    Appended,
    Conflict,
    IdempotencyKey,
    Outcome,
    RecordedEvent,
    Replayed,
    StreamAppend,
)
from events.deadline import remaining
from events.errors import StoreUnavailable
from events.ids import as_uuid

FIRST_VERSIONS = (0, 1)
"""Streams of ours begin at 1; the library's conformance cases also begin at 0."""


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class MemoryLog:
    """Implements events.log.Log. Gone with the object; for one event loop."""

    clock: Callable[[], datetime] = utc_now
    log_tag: str = "memory00"
    _events: list[RecordedEvent] = field(default_factory=list[RecordedEvent])
    _streams: dict[UUID, list[RecordedEvent]] = field(default_factory=dict[UUID, list[RecordedEvent]])
    _keys: dict[tuple[str, str, str], Replayed] = field(
        default_factory=dict[tuple[str, str, str], Replayed]
    )

    async def append(self, commands: Sequence[AppendCommand], *, deadline: float) -> list[Outcome]:
        """As Log.append(). Raises ValueError where the real one would meet a broken promise of the
        caller's: two commands of a call that touch the same stream or key."""
        _refuse_overlap(commands)
        if commands and remaining(deadline) == 0:
            raise StoreUnavailable("the deadline passed before the command was sent")
        return [self._append(command) for command in commands]

    async def read_stream(self, originator_id: UUID) -> list[RecordedEvent]:
        return list(self._streams.get(originator_id, []))

    async def read_streams(self, ids: Sequence[UUID]) -> dict[UUID, list[RecordedEvent]]:
        return {i: list(self._streams[i]) for i in ids if i in self._streams}

    async def read_after(
        self, position: int, *, limit: int, upto: int | None = None
    ) -> list[RecordedEvent]:
        return self._events[max(position, 0) : upto][:limit]

    async def head(self) -> int:
        return len(self._events)

    async def tag(self) -> str:
        return self.log_tag

    def _append(self, command: AppendCommand) -> Outcome:
        if command.key is not None and _scope(command.key) in self._keys:
            return self._keys[_scope(command.key)]
        if not self._follows(command):
            return Conflict()
        now = self.clock()
        recorded_at = max(now, self._events[-1].recorded_at) if self._events else now
        first = len(self._events) + 1
        for stream in command.streams:
            self._store(stream, recorded_at)
        if command.key is not None:
            self._keys[_scope(command.key)] = Replayed(first, len(self._events), command.key.fingerprint)
        return Appended(first, len(self._events), recorded_at)

    def _follows(self, command: AppendCommand) -> bool:
        """Whether all its streams run on from their stored heads without gaps."""
        given: dict[UUID, list[int]] = {}
        for stream in command.streams:
            versions = given.setdefault(stream.originator_id, [])
            versions.extend(event.originator_version for event in stream.events)
        return all(self._follows_head(i, versions) for i, versions in given.items())

    def _follows_head(self, stream: UUID, versions: list[int]) -> bool:
        stored = self._streams.get(stream)
        allowed = FIRST_VERSIONS if stored is None else (stored[-1].originator_version + 1,)
        return versions[0] in allowed and versions == list(range(versions[0], versions[0] + len(versions)))

    def _store(self, stream: StreamAppend, recorded_at: datetime) -> None:
        for event in stream.events:
            recorded = RecordedEvent(
                originator_id=event.originator_id,
                originator_version=event.originator_version,
                topic=event.topic,
                state=event.state,
                id=len(self._events) + 1,
                recorded_at=recorded_at,
                tenant=stream.tenant,
                kind=stream.kind,
                queue=stream.queue,
            )
            self._events.append(recorded)
            self._streams.setdefault(as_uuid(event.originator_id), []).append(recorded)


def _scope(key: IdempotencyKey) -> tuple[str, str, str]:
    return (key.tenant, key.operation, key.key)


def _refuse_overlap(commands: Sequence[AppendCommand]) -> None:
    streams = [i for c in commands for i in {s.originator_id for s in c.streams}]
    keys = [_scope(c.key) for c in commands if c.key is not None]
    if len(set(streams)) < len(streams) or len(set(keys)) < len(keys):
        raise ValueError("two commands of one append touch the same stream or key")
