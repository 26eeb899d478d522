"""Event record <-> stored event: the library's mapper over strict, compact JSON."""

import math
from functools import cache
from typing import Any, Final, cast
from uuid import UUID

import orjson
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import Mapper, StoredEvent, Transcoder
from pydantic import BaseModel

from events.errors import UndecodableEvent, UnknownEvent
from events.ids import as_uuid
from events.key_events import KeyEvent
from events.plain import plain_record
from events.queue_events import QueueEvent
from events.records import ENVELOPE, METADATA, EventRecord, defaults_of, known_record
from events.task_events import TaskEvent
from events.webhook_events import WebhookEvent

RECORD_FAMILIES = (TaskEvent, QueueEvent, WebhookEvent, KeyEvent)
"""Whatever is in the log belongs to one of them; to import their modules is to register the topics."""


class OrjsonTranscoder(Transcoder):
    """Compact UTF-8 JSON. Raises orjson.JSONEncodeError (a TypeError) for what JSON cannot hold."""

    def encode(self, obj: Any) -> bytes:
        data = orjson.dumps(obj, default=_plain, option=orjson.OPT_PASSTHROUGH_DATACLASS)
        # orjson writes NaN and infinity as null; only where there is a null can there have been one.
        if b"null" in data and not _is_finite(obj):
            raise orjson.JSONEncodeError("an event cannot hold NaN or infinity")
        return data

    def decode(self, data: bytes) -> Any:
        return orjson.loads(data)


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, BaseModel):
        value = value.__dict__
    if isinstance(value, dict):
        return all(map(_is_finite, cast("dict[str, object]", value).values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, cast("list[object]", value)))
    return True


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_defaults=True)
    raise TypeError(f"an event cannot hold a {type(value).__name__}")


class EventMapper(Mapper[UUID]):
    """Stores only what differs from the record's defaults; resolves topics, upcasts, validates."""

    def __init__(self) -> None:
        super().__init__(OrjsonTranscoder())

    def to_stored_event(self, domain_event: DomainEventProtocol[UUID]) -> StoredEvent:
        return self.encode(cast("EventRecord", domain_event))

    def to_domain_event(self, stored_event: StoredEvent) -> DomainEventProtocol[UUID]:
        return cast("DomainEventProtocol[UUID]", self.decode(stored_event))

    def encode(self, record: EventRecord) -> StoredEvent:
        """Raises TypeError for a value that JSON cannot hold."""
        cls = type(record)
        values = record.__dict__
        state: dict[str, Any] = {}
        for name, default in _stored_fields(cls):
            value = values[name]
            if value is not default and value != default:
                state[name] = value
        if cls.class_version > 1:
            state["class_version"] = cls.class_version
        return StoredEvent(
            record.originator_id,
            record.originator_version,
            cls.TOPIC,
            self.transcoder.encode(state),
        )

    def decode(self, stored: StoredEvent) -> EventRecord:
        """Raises UnknownEvent for a topic or version this release does not know, UndecodableEvent
        for a state that does not fit its topic. The messages name the event, never its content."""
        cls = known_record(stored.topic)
        if cls is not None and isinstance(stored.originator_id, UUID):
            plain = plain_record(cls, stored.originator_id, stored.originator_version, stored.state)
            if plain is not None:
                return plain
        return self.validated(stored)

    def validated(self, stored: StoredEvent) -> EventRecord:
        """As decode(), by the ordinary way, which knows what to change, check and refuse."""
        cls = known_record(stored.topic)
        where = f"{stored.topic} {stored.originator_id} version {stored.originator_version}"
        if cls is None:
            raise UnknownEvent(f"{where}: this release does not know the topic")
        try:
            state = self.transcoder.decode(stored.state)
            stored_version = state.pop("class_version", 1)
            if stored_version > cls.class_version:
                raise UnknownEvent(f"{where}: stored as version {stored_version} of its class")
            for v in range(stored_version, cls.class_version):
                getattr(cls, f"upcast_v{v}_v{v + 1}")(state)
            return cls(
                originator_id=as_uuid(stored.originator_id),
                originator_version=stored.originator_version,
                **state,
            )
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise UndecodableEvent(f"{where}: {type(error).__name__}") from error


def is_task_topic(topic: str) -> bool:
    """Whether a follower must understand the topic: an unknown one that starts so stops it."""
    return topic.startswith("Task")


def metadata_of(record: EventRecord) -> dict[str, str]:
    """What is known about the event beyond its data; absent fields are left out."""
    values = {name: getattr(record, name) for name in METADATA}
    return {name: value for name, value in values.items() if value is not None}


def data_of(record: EventRecord) -> dict[str, Any]:
    """What the event carries, defaults included, ready for JSON. Of sealed text nothing."""
    return record.model_dump(mode="json", exclude=_HIDDEN)


_HIDDEN = {*ENVELOPE, *METADATA, "sealed"}
_ALWAYS: Final = object()
"""The default of a field that has none: nothing equals it."""


@cache
def _stored_fields(cls: type[EventRecord]) -> list[tuple[str, object]]:
    defaults = defaults_of(cls)
    return [(name, defaults.get(name, _ALWAYS)) for name in cls.model_fields if name not in ENVELOPE]
