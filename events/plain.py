"""The short way from a stored event to its record.

Most stored states need no validation: every field has exactly the type that its annotation asks for, so
that pydantic would change nothing. Those become records straight from their JSON, in a fifth of the time.
What is not so plain (a field unknown or missing, another type, an older class version, a kind of annotation
that is not in the table below) goes the ordinary way in EventMapper, which decides what it is. A test
holds both to the same records.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, Literal, get_args, get_origin
from uuid import UUID

import orjson
from pydantic import BaseModel

from events.records import ENVELOPE, EventRecord, defaults_of

Converter = Callable[[Any], Any]
"""Raises KeyError, ValueError or TypeError for what is not plain."""

_UTC: Final = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):\d\d:\d\d(\.\d{6})?\+00:00", re.ASCII)
"""As the codec writes times. Python and pydantic differ about other spellings."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the states of one record class look like."""

    exact: dict[str, type]
    """Fields that are taken as they are if they are exactly of this type."""
    converted: dict[str, Converter]
    required: frozenset[str]
    defaults: dict[str, Any]


def plain_record(
    cls: type[EventRecord], originator_id: UUID, version: int, state: bytes
) -> EventRecord | None:
    """The record that validation would give for this event of class `cls`, or None: then validate. It
    does not know which fields were stored and which are defaults."""
    record = bare_record(cls, originator_id, version, state)
    if record is not None:
        _set(record, "__pydantic_fields_set__", set(record.__dict__))
        _set(record, "__pydantic_extra__", None)
        _set(record, "__pydantic_private__", None)
    return record


def bare_record(
    cls: type[EventRecord], originator_id: UUID, version: int, state: bytes
) -> EventRecord | None:
    """As plain_record(), only for evolve() to look at: it has its fields, and none of what pydantic adds
    for itself, so that it cannot be compared, copied or dumped."""
    shape = shape_of(cls)
    if shape is None:
        return None
    try:
        values = orjson.loads(state)
        exact = shape.exact
        for name, value in values.items():
            if exact.get(name) is not type(value):
                values[name] = shape.converted[name](value)
    except (LookupError, ValueError, TypeError, AttributeError):
        return None
    if not values.keys() >= shape.required:
        return None
    record = _new(cls)
    fields = {**shape.defaults, **values, "originator_id": originator_id, "originator_version": version}
    _set(record, "__dict__", fields)
    return record


_new: Final[Callable[[type[EventRecord]], EventRecord]] = object.__new__
_set: Final = object.__setattr__


@cache
def shape_of(cls: type[EventRecord]) -> Shape | None:
    """None for a class that stored states are changed for."""
    if cls.class_version > 1:
        return None
    exact: dict[str, type] = {}
    converted: dict[str, Converter] = {}
    for name, field in cls.model_fields.items():
        if name not in ENVELOPE:
            kind = _without_none(field.annotation)
            if kind in (str, int, float, bool):
                exact[name] = kind
            elif (converter := _converter(kind)) is not None:
                converted[name] = converter
    fields = {name: field for name, field in cls.model_fields.items() if name not in ENVELOPE}
    return Shape(
        exact=exact,
        converted=converted,
        required=frozenset(name for name, field in fields.items() if field.is_required()),
        defaults=defaults_of(cls),
    )


def _without_none(annotation: Any) -> Any:
    """A null is never plain: the codec does not write what equals its default."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    return parts[0] if len(parts) == 1 and type(None) in get_args(annotation) else annotation


def _converter(kind: Any) -> Converter | None:
    if kind is Any:
        return _as_it_is
    if kind is datetime:
        return _utc
    if kind == tuple[str, ...]:
        return _texts
    if get_origin(kind) is Literal:
        return {value: value for value in get_args(kind)}.__getitem__
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_validate
    return None


def _as_it_is(value: Any) -> Any:
    return value


def _utc(value: Any) -> datetime:
    if _UTC.fullmatch(value) is None:
        raise ValueError
    return datetime.fromisoformat(value)


def _texts(value: list[Any]) -> tuple[str, ...]:
    if type(value) is not list or not all(type(item) is str for item in value):
        raise TypeError
    return tuple(value)
