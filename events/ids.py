"""Identities: tasks, queues, events. The only module of `events` that draws what is random and stored."""

import os
import secrets
from base64 import urlsafe_b64encode
from typing import Final
from uuid import UUID, uuid5

from uuid_utils.compat import uuid7

from events.tenants import DEFAULT_TENANT

__all__ = [
    "DEFAULT_TENANT",
    "as_uuid",
    "new_task_id",
    "new_uid",
    "new_webhook_id",
    "parse_id",
    "parse_task_id",
    "queue_id",
]

_QUEUE_NAMESPACE = UUID("6f0d6a1c-5a54-5c37-9a3e-0e6f7a2b9c11")
"""Fixed for ever: ids of queue aggregates in every stored log derive from it."""


_CANONICAL_LENGTH = 36


def new_task_id() -> UUID:
    """A UUIDv7: ids rise with time, so the log's index grows at its right edge only."""
    return uuid7()


def new_webhook_id() -> UUID:
    return uuid7()


def queue_id(tenant: str, queue: str) -> UUID:
    """The id of a queue's own aggregate (paused or not). Names hold no "/", so no two pairs meet."""
    return uuid5(_QUEUE_NAMESPACE, f"{tenant}/{queue}")


def new_uid() -> str:
    """96 random bits in 16 characters: tells our own event from another's after an unknown outcome."""
    return _uids.draw()


class _Uids:
    """Draws many at once: the system call costs more than all else."""

    def __init__(self) -> None:
        self._drawn: list[str] = []
        os.register_at_fork(after_in_child=self._drawn.clear)  # a child must not draw what its parent does

    def draw(self) -> str:
        try:
            return self._drawn.pop()
        except IndexError:
            text = urlsafe_b64encode(secrets.token_bytes(_UID_BYTES * _UIDS)).decode()
            self._drawn.extend(text[at : at + _UID_LENGTH] for at in range(0, len(text), _UID_LENGTH))
            return self._drawn.pop()


_UIDS: Final = 256
_UID_BYTES: Final = 12
_UID_LENGTH: Final = 16
_uids: Final = _Uids()


def parse_id(text: str) -> UUID | None:
    """The id for its one canonical spelling (lower case, hyphens), else None."""
    if len(text) != _CANONICAL_LENGTH:
        return None
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if str(found) == text else None


parse_task_id = parse_id


def as_uuid(value: UUID | str) -> UUID:
    """The library's ids are UUIDs or strings; ours are UUIDs. Raises ValueError for another string."""
    return value if isinstance(value, UUID) else UUID(value)
