"""Sealed text as it is stored: an envelope of a key's id, a version, and ciphertext. Pure, no cryptography.

    byte 0        1, the format: JSON never begins so, and no client's value can be taken for an envelope
    byte 1        0
    bytes 2-17    id of the data key
    bytes 18-23   version of the event that it was sealed for
    bytes 24-35   nonce
    from 36 on    ciphertext and tag

In an event it is base64, in the field `sealed` beside the field that it stands for; its first 32 characters
are the head. In a column of the read tables it takes the place of the JSON. An envelope that ends with its
head was sealed for a key that was destroyed already: there was nothing to seal it with.
"""

from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple
from uuid import UUID

from events.errors import SealBroken

MARK: Final = b"\x01\x00"
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = 24
_BODY: Final = _HEAD_BYTES + _NONCE_BYTES
_HEAD_CHARACTERS: Final = 32


class Place(NamedTuple):
    """Where a text belongs: sealed together with it, so that it cannot be moved."""

    tenant: str
    task: UUID
    version: int
    """Of the event within its task."""
    field: str

    @property
    def context(self) -> bytes:
        """One for each place: all but the first and the last part have a fixed length."""
        version = self.version.to_bytes(6)
        return b"".join((self.field.encode(), b"/", version, self.task.bytes, self.tenant.encode()))


class Envelope(NamedTuple):
    key: UUID
    version: int
    nonce: bytes
    ciphertext: bytes
    """Empty where the key was destroyed before."""

    def pack(self) -> bytes:
        head = MARK + self.key.bytes + self.version.to_bytes(6)
        return head + self.nonce + self.ciphertext if self.ciphertext else head

    @property
    def text(self) -> str:
        """As events hold it."""
        return b64encode(self.pack()).decode()


@dataclass(frozen=True, slots=True)
class Erased:
    """In place of a value whose key was destroyed."""

    at: datetime
    left: Any = None
    """What the event says in clear where the value would be."""


def is_envelope(column: bytes | None) -> bool:
    """Whether a column of the read tables holds an envelope, and not JSON."""
    return column is not None and column.startswith(MARK)


def column_of(text: str) -> bytes:
    """What the read tables hold of an event's envelope. Raises ValueError, by which the projector tells an
    event that it cannot apply."""
    data = b64decode(text, validate=True)
    if not _is_whole(data):
        raise ValueError("what should be sealed text is none")
    return data


def unpack(data: bytes) -> Envelope:
    """Raises SealBroken."""
    if not _is_whole(data):
        raise SealBroken("what should be sealed text is none")
    return Envelope(
        UUID(bytes=data[2:18]),
        int.from_bytes(data[18:_HEAD_BYTES]),
        data[_HEAD_BYTES:_BODY],
        data[_BODY:],
    )


def packed(text: str) -> bytes:
    """From its form in events. Raises SealBroken."""
    try:
        return column_of(text)
    except ValueError:  # binascii.Error is one
        raise SealBroken("what should be sealed text is none") from None


def _is_whole(data: bytes) -> bool:
    return data.startswith(MARK) and (len(data) == _HEAD_BYTES or len(data) > _BODY)


def key_of(text: str) -> UUID:
    """As unpack(packed(text)).key, without a look at the rest."""
    return _key_of_head(text[:_HEAD_CHARACTERS])


@lru_cache(maxsize=4096)
def _key_of_head(text: str) -> UUID:
    """The same for all tasks that are sealed with one key."""
    return unpack(packed(text)).key
