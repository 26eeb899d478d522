"""What every event record shares: an envelope, an explicit topic, a version with its upcasters."""

from functools import cache
from typing import Any, ClassVar, Final, Self
from uuid import UUID

from eventsourcing.utils import TopicError, register_topic, resolve_topic
from pydantic import BaseModel, ConfigDict


class EventRecord(BaseModel):
    """A fact in the log: frozen, plain, and independent of the module it is defined in.

    Fields that equal their default are not stored, so a default is part of the stored format and
    must never change: a new default is a new `class_version` with an upcaster
    (`upcast_v1_v2(state)`, changing the stored dict in place), next to a new golden file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    TOPIC: ClassVar[str]
    class_version: ClassVar[int] = 1

    originator_id: UUID
    originator_version: int
    """Position within its aggregate, from 1, without gaps."""

    event_uid: str
    """Drawn by the writer: after a lost connection it tells whether the stored event is our own."""
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None
    actor: str | None = None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "TOPIC" in cls.__dict__:
            register_topic(cls.TOPIC, cls)

    @classmethod
    def trusted(cls, **fields: Any) -> Self:
        """Without validation, which takes longer than all else that is done with a record: for a writer
        whose values have been checked on their way in."""
        record = object.__new__(cls)
        _set(record, "__dict__", {**defaults_of(cls), **fields})
        _set(record, "__pydantic_fields_set__", set(fields))
        _set(record, "__pydantic_extra__", None)
        _set(record, "__pydantic_private__", None)
        return record

    def replaced(self, **fields: Any) -> Self:
        """A copy with other values, as trusted() makes it."""
        return self.trusted(**{**self.__dict__, **fields})

    def stamped(self, **metadata: str | None) -> Self:
        return self.model_copy(update=metadata)


_set: Final = object.__setattr__


@cache
def defaults_of(cls: type[EventRecord]) -> dict[str, Any]:
    """Of the fields that need not be given."""
    return {name: field.default for name, field in cls.model_fields.items() if not field.is_required()}


ENVELOPE = frozenset({"originator_id", "originator_version"})
METADATA = ("event_uid", "correlation_id", "causation_id", "traceparent", "actor")


def topics(family: type[EventRecord]) -> frozenset[str]:
    """Of all its records; what only groups some of them has none."""
    below = frozenset(topic for cls in family.__subclasses__() for topic in topics(cls))
    return below | {family.TOPIC} if "TOPIC" in family.__dict__ else below


def known_record(topic: str) -> type[EventRecord] | None:
    """The record class of a topic, or None. A topic is never a module path: nothing is imported."""
    if ":" in topic or "." in topic:
        return None
    try:
        cls = resolve_topic(topic)
    except (TopicError, ValueError):
        return None
    return cls if isinstance(cls, type) and issubclass(cls, EventRecord) else None
