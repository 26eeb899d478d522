"""PostgreSQL's binary form of the arrays that an append carries, written in one go.

psycopg looks up how to write every element and every array by its type, which for a group of a few
commands takes longer than the append itself.
"""

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import ClassVar, Final
from uuid import UUID

from psycopg import postgres
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEADER: Final = Struct("!iiIii")
"""Dimensions (one), flags (no nulls), type of the elements, their number, the first one's index."""
_LENGTH: Final = Struct("!i").pack
_INT: Final = Struct("!ii").pack
_BIGINT: Final = Struct("!iq").pack
_UUID_LENGTH: Final = _LENGTH(16)


class BinaryArray:
    """The elements, ready to be sent. psycopg tells types of parameters by their classes."""

    __slots__ = ("data",)
    ELEMENT: ClassVar[str]

    def __init__(self, elements: Sequence[bytes]) -> None:
        """Each element behind its length, as the makers below return it."""
        header = _HEADER.pack(1, 0, postgres.types[self.ELEMENT].oid, len(elements), 1)
        self.data: Final = header + b"".join(elements)


class Ints(BinaryArray):
    ELEMENT = "int4"

    @classmethod
    def of(cls, values: Iterable[int]) -> "Ints":
        return cls([_INT(4, value) for value in values])


class Bigints(BinaryArray):
    ELEMENT = "int8"

    @classmethod
    def of(cls, values: Iterable[int]) -> "Bigints":
        return cls([_BIGINT(8, value) for value in values])


class Uuids(BinaryArray):
    ELEMENT = "uuid"

    @classmethod
    def of(cls, values: Iterable[UUID]) -> "Uuids":
        return cls([_UUID_LENGTH + value.bytes for value in values])


class Texts(BinaryArray):
    ELEMENT = "text"

    @classmethod
    def of(cls, values: Sequence[str]) -> "Texts":
        """Of few different values, as a rule."""
        written = {value: _counted(value.encode()) for value in set(values)}
        return cls([written[value] for value in values])


class Byteas(BinaryArray):
    ELEMENT = "bytea"

    @classmethod
    def of(cls, values: Iterable[bytes]) -> "Byteas":
        return cls([_counted(value) for value in values])


def accept_arrays(context: AdaptContext) -> None:
    """Lets the connection take them as parameters (`%b`)."""
    for dumper in _DUMPERS:
        context.adapters.register_dumper(dumper.TAKES, dumper)


def _counted(data: bytes) -> bytes:
    return _LENGTH(len(data)) + data


class _Dumper(Dumper):
    format = Format.BINARY
    TAKES: ClassVar[type[BinaryArray]]

    def dump(self, obj: BinaryArray) -> bytes:
        return obj.data


def _dumper(takes: type[BinaryArray]) -> type[_Dumper]:
    oid = postgres.types[takes.ELEMENT].array_oid
    return type(f"_{takes.__name__}Dumper", (_Dumper,), {"oid": oid, "TAKES": takes})


_DUMPERS: Final = [_dumper(takes) for takes in (Ints, Bigints, Uuids, Texts, Byteas)]
