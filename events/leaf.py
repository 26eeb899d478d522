"""An event as a leaf of the tree over the log: which bytes are hashed. Pure, and fixed for ever.

Nine fields, each as its length in four bytes and then itself, big-endian: position and version as
integers of eight bytes, the id's 16 bytes, texts in UTF-8, the state as it is stored, and recorded_at as
microseconds since 2000. That is how PostgreSQL's binary COPY writes the columns, so that a leaf read from
there is hashed without taking it apart.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Final
from uuid import UUID

from events.append import RecordedEvent

COLUMNS: Final = (
    "notification_id, originator_id, originator_version, topic, state, recorded_at, tenant, kind, queue"
)
"""In the order of the leaf's fields."""

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_INT8: Final = Struct(">q").pack
_LENGTH: Final = Struct(">i").pack
_COUNT: Final = Struct(">h").pack(9)
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""What a binary COPY begins with: no flags, no extension."""
_END: Final = b"\xff\xff"
_POSITION: Final = Struct(">2x4xq").unpack_from


def leaf_of(event: RecordedEvent) -> bytes:
    fields: Sequence[bytes] = (
        _INT8(event.id),
        UUID(str(event.originator_id)).bytes,
        _INT8(event.originator_version),
        event.topic.encode(),
        bytes(event.state),
        _INT8((event.recorded_at - _EPOCH) // _MICROSECOND),
        event.tenant.encode(),
        event.kind.encode(),
        event.queue.encode(),
    )
    return b"".join([part for field in fields for part in (_LENGTH(len(field)), field)])


def leaf_of_copy(message: bytes) -> tuple[int, bytes] | None:
    """Position and leaf from one message of a binary COPY of COLUMNS; None for the one that ends it.

    PostgreSQL sends a row a message, the first one after the signature. Raises ValueError for another
    message, as there is none that it sends.
    """
    row = message.removeprefix(_SIGNATURE)
    if row == _END:
        return None
    if not row.startswith(_COUNT):
        raise ValueError("not a row of nine columns")
    return _POSITION(row)[0], row[2:]
