"""Commands for the log, without meaning: the log does not look into an event."""

from uuid import UUID

from eventsourcing.persistence import StoredEvent

from events.append import AppendCommand, IdempotencyKey, StreamAppend
from events.ids import new_task_id, new_uid


def stored_event(version: int = 1, *, of: UUID | None = None, state: bytes | None = None) -> StoredEvent:
    """Its state is unique unless given, as the random event_uid makes it in earnest."""
    body = state if state is not None else new_uid().encode()
    return StoredEvent(of or new_task_id(), version, "TaskCreated", body)


def stream(first: int = 1, count: int = 1, *, of: UUID | None = None) -> StreamAppend:
    """`count` events of one stream from version `first` on."""
    task = of or new_task_id()
    events = [stored_event(first + i, of=task) for i in range(count)]
    return StreamAppend(task, events, kind="sum", queue="default")


def command(
    first: int = 1, count: int = 1, *, of: UUID | None = None, key: IdempotencyKey | None = None
) -> AppendCommand:
    return AppendCommand([stream(first, count, of=of)], key)


def batch(count: int) -> AppendCommand:
    """One command of `count` streams."""
    return AppendCommand([stream() for _ in range(count)])


def idempotency_key(name: str = "k", fingerprint: bytes = b"f", *, tenant: str = "t") -> IdempotencyKey:
    return IdempotencyKey(tenant, "tasks", name, fingerprint)
