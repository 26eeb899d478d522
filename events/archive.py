"""A log, or one task of it, as lines of JSON: what is in an exported file, and whether all of it is. Pure.

The first line says what the file is, then comes a line for each event, and the last one says how many there
were, their Merkle root (events.leaf, events.merkle) and the SHA-256 of every byte before it. A state that
is JSON as the codec writes it is shown as JSON, any other in base64: what is read back is the very bytes.
"""

import base64
import binascii
import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast
from uuid import UUID

import orjson

from events.append import RecordedEvent
from events.errors import ArchiveRefused
from events.leaf import leaf_of
from events.merkle import TreeHead

FORMAT: Final = "taskledger-archive"
VERSION: Final = 1

Scope = Literal["log", "task"]


@dataclass(frozen=True, slots=True)
class Header:
    scope: Scope
    """Of a whole log the positions follow each other from 1 on."""
    log: str
    """The tag of the log that was exported."""
    head: int
    """Its head at that moment."""
    events: int
    exported_at: datetime


class Archiver:
    """Gives the lines of an archive, and remembers what its last one says."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._digest = hashlib.sha256()
        self._tree = TreeHead()

    def header(self) -> bytes:
        header = self._header
        return self._line(
            {
                "format": FORMAT,
                "version": VERSION,
                "scope": header.scope,
                "log": header.log,
                "head": header.head,
                "events": header.events,
                "exported_at": header.exported_at.astimezone(UTC),
            }
        )

    def event(self, event: RecordedEvent) -> bytes:
        self._tree.add(leaf_of(event))
        return self._line(_event_json(event))

    def trailer(self) -> bytes:
        root = base64.b64encode(self._tree.root()).decode()
        return _json({"events": self._tree.size, "root": root, "sha256": self._digest.hexdigest()})

    def _line(self, value: dict[str, Any]) -> bytes:
        line = _json(value)
        self._digest.update(line)
        return line


@dataclass(slots=True)
class Archive:
    """An archive that is being read. Whoever reads it may use an event before the end is known to be good,
    but must take it back if events() raises."""

    header: Header
    _lines: Iterator[bytes]
    _digest: Any

    @classmethod
    def of(cls, lines: Iterable[bytes]) -> "Archive":
        """Raises ArchiveRefused for what is no archive of a version that we know."""
        found = iter(lines)
        first = next(found, b"")
        return cls(_header_of(first), found, hashlib.sha256(first))

    def events(self) -> Iterator[RecordedEvent]:
        """Raises ArchiveRefused at a line that is no event, and at the end if anything is missing, was
        added or is not what was written."""
        tree, line = TreeHead(), next(self._lines, b"")
        for following in self._lines:
            self._digest.update(line)
            event = _event_of(line, tree.size + 1)
            if self.header.scope == "log" and event.id != tree.size + 1:
                raise ArchiveRefused(f"position {event.id} follows {tree.size} in the file")
            tree.add(leaf_of(event))
            yield event
            line = following
        root = base64.b64encode(tree.root()).decode()
        said = _parsed(line)
        wanted = {"events": tree.size, "root": root, "sha256": self._digest.hexdigest()}
        if said != wanted or tree.size != self.header.events or not line.endswith(b"\n"):
            raise ArchiveRefused("the file is cut off, or is not as it was written")


def _event_json(event: RecordedEvent) -> dict[str, Any]:
    state = bytes(event.state)
    return {
        "position": event.id,
        "originator_id": event.originator_id,
        "version": event.originator_version,
        "topic": event.topic,
        "recorded_at": event.recorded_at.astimezone(UTC),
        "tenant": event.tenant,
        "kind": event.kind,
        "queue": event.queue,
        **state_json(state),
    }


def state_json(state: bytes) -> dict[str, Any]:
    """`state` where it is JSON that comes back as the same bytes, else `state_base64`."""
    try:
        value = orjson.loads(state)
        if orjson.dumps(value) == state:
            return {"state": orjson.Fragment(state)}
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass
    return {"state_base64": base64.b64encode(state).decode()}


def _event_of(line: bytes, number: int) -> RecordedEvent:
    try:
        value = _parsed(line)
        state = (
            orjson.dumps(value["state"])
            if "state" in value
            else base64.b64decode(value["state_base64"], validate=True)
        )
        event = RecordedEvent(
            id=value["position"],
            originator_id=UUID(value["originator_id"]),
            originator_version=value["version"],
            topic=value["topic"],
            state=state,
            recorded_at=datetime.fromisoformat(value["recorded_at"]),
            tenant=value["tenant"],
            kind=value["kind"],
            queue=value["queue"],
        )
        leaf_of(event)
    except (LookupError, ValueError, TypeError, AttributeError, struct.error, binascii.Error):
        raise ArchiveRefused(f"event {number} of the file is none") from None
    return event


def _header_of(line: bytes) -> Header:
    value = _parsed(line)
    if value.get("format") != FORMAT:
        raise ArchiveRefused("the file is no export of taskledger")
    if value.get("version") != VERSION:
        raise ArchiveRefused("the file is of a later release")
    try:
        scope: Scope = value["scope"]
        at = datetime.fromisoformat(value["exported_at"])
        header = Header(scope, str(value["log"]), int(value["head"]), int(value["events"]), at)
    except (LookupError, ValueError, TypeError):
        raise ArchiveRefused("the file's first line is damaged") from None
    if header.scope not in {"log", "task"}:
        raise ArchiveRefused("the file's first line is damaged")
    return header


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise ArchiveRefused(
            "the file holds a line that is not JSON: it is cut off, or no export"
        ) from None
    if not isinstance(value, dict):
        raise ArchiveRefused("the file holds a line that is no JSON object")
    return cast("dict[str, Any]", value)


def _json(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)
