"""PostgreSQL's binary arrays: one parameter a column, whatever the number of rows.

psycopg's own lists cost several microseconds an array and half of one an element, which would be most of
what a small group of appends, or a batch of the read tables, costs its client.
"""

import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format


class BinaryArray(bytes):
    """Bound as it is; the statement says of which type it is (`$1::int8[]`)."""

    __slots__ = ()


class _AsItIs(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer:
        return bytes(obj)


psycopg.adapters.register_dumper(BinaryArray, _AsItIs)

_HEADER: Final = struct.Struct(">iiIii").pack
"""Dimensions, whether there are nulls, the elements' type, their number, the first one's index."""
_LENGTH: Final = struct.Struct(">i").pack
_NULL: Final = _LENGTH(-1)
_INT4: Final = struct.Struct(">ii").pack
_INT8: Final = struct.Struct(">iq").pack
_FLOAT8: Final = struct.Struct(">id").pack
_BOOL: Final = struct.Struct(">i?").pack
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def _int4(value: int) -> bytes:
    return _INT4(4, value)


def _int8(value: int) -> bytes:
    return _INT8(8, value)


def _float8(value: float) -> bytes:
    return _FLOAT8(8, value)


def _bool(value: bool) -> bytes:
    return _BOOL(1, value)


def _timestamptz(value: datetime) -> bytes:
    return _INT8(8, (value - _EPOCH) // _MICROSECOND)


def _uuid(value: UUID) -> bytes:
    return b"\0\0\0\x10" + value.bytes


def _bytea(value: bytes) -> bytes:
    return _LENGTH(len(value)) + value


def _text(value: str) -> bytes:
    data = value.encode()
    return _LENGTH(len(data)) + data


def _texts(value: Sequence[str]) -> bytes:
    """As the text of an array: unnest() would take the elements of an array of arrays one by one."""
    quoted = [text.replace("\\", "\\\\").replace('"', '\\"') for text in value]
    return _text("{" + ",".join(f'"{text}"' for text in quoted) + "}")


class _Type(NamedTuple):
    oid: int
    element: Callable[[Any], bytes]
    """Its length, then itself."""


_TYPES: Final = {
    "uuid": _Type(2950, _uuid),
    "int4": _Type(23, _int4),
    "int8": _Type(20, _int8),
    "float8": _Type(701, _float8),
    "bool": _Type(16, _bool),
    "timestamptz": _Type(1184, _timestamptz),
    "text": _Type(25, _text),
    "text[]": _Type(25, _texts),
    "bytea": _Type(17, _bytea),
}


def parameter_type(type_: str) -> str:
    """Of the array that array() makes; for `text[]` each element is to be cast back."""
    return "text[]" if type_ == "text[]" else f"{type_}[]"


def array(type_: str, values: Sequence[Any]) -> BinaryArray | None:
    """None where all are null: unnest() fills up what is shorter than its neighbours.

    Raises ArithmeticError, ValueError or TypeError for what the type cannot hold.
    """
    oid, element = _TYPES[type_]
    try:
        elements = [_NULL if value is None else element(value) for value in values]
    except struct.error as error:
        raise OverflowError(f"a value that {type_} cannot hold") from error
    nulls = elements.count(_NULL)
    if elements and nulls == len(elements):
        return None
    header = _HEADER(1, nulls > 0, oid, len(elements), 1)
    return BinaryArray(header + b"".join(elements))
