"""Checkpoints: how far a follower of the log has got, kept in the transaction of what it writes."""

import time
from datetime import datetime
from threading import Event
from typing import Final

from eventsourcing.persistence import (
    IntegrityError,
    Tracking,
    TrackingRecorder,
    WaitInterruptedError,
)
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from events.connections import Connect, Connections, translated_errors
from events.deadline import after, remaining
from events.errors import CheckpointConflict, LogRewound

READ_CHANNEL: Final = "taskledger_read"
"""Notified with the new checkpoint, after the commit. A hint: whoever waits polls as well."""
WANTED_CHANNEL: Final = "taskledger_wanted"
"""Notified with a position by whoever waits for it, so that the projector gathers no longer. Only a hint:
without it a wait takes some milliseconds more."""

BUDGET_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.1

_READ: Final = "select position from taskledger.checkpoints where name = %s"
_ADVANCE: Final = """
insert into taskledger.checkpoints as c (name, position, event_position, event_at)
select %(name)s, %(position)s, %(event_position)s::bigint, %(event_at)s::timestamptz
where %(expected)s = 0 or exists (select from taskledger.checkpoints where name = %(name)s)
on conflict (name) do update set position = excluded.position, event_position = excluded.event_position,
    event_at = excluded.event_at, updated_at = clock_timestamp()
where c.position = %(expected)s
"""
_KNOWN_AGAIN: Final = """
select c.position, c.event_position, h.head, e.recorded_at is not distinct from c.event_at
from taskledger.checkpoints c
cross join (select coalesce(max(notification_id), 0) as head from taskledger.task_events) h
left join taskledger.task_events e on e.notification_id = c.event_position
where c.name = %s
"""
_RAISE: Final = """
insert into taskledger.checkpoints as c (name, position) values (%s, %s)
on conflict (name) do update set position = excluded.position, updated_at = clock_timestamp()
where c.position < excluded.position
"""


def checkpoint(connection: Connection[TupleRow], name: str) -> int:
    """The stored position; 0 where nothing is stored yet."""
    row = connection.execute(_READ, (name,)).fetchone()
    return 0 if row is None else int(row[0])


async def checkpoint_async(connection: AsyncConnection[TupleRow], name: str) -> int:
    """As checkpoint()."""
    row = await (await connection.execute(_READ, (name,))).fetchone()
    return 0 if row is None else int(row[0])


def check_log(connection: Connection[TupleRow], name: str) -> None:
    """Raises LogRewound if the log is not the one on which the checkpoint was reached: it ends before
    that, or holds another event there. To follow it would be to pass over events without a sound."""
    row = connection.execute(_KNOWN_AGAIN, (name,)).fetchone()
    if row is None:
        return
    position, event_position, head, same = row
    if head < position:
        raise LogRewound(f"the log ends at position {head} and was read up to {position}")
    if event_position is not None and not same:
        raise LogRewound(f"at position {event_position} is another event than the one that was read")


def advance(
    connection: Connection[TupleRow],
    name: str,
    expected: int,
    position: int,
    *,
    at: datetime | None = None,
) -> None:
    """Moves the checkpoint from `expected` (0: none stored yet) to `position`, in the transaction the
    caller has open, whose row lock it holds until the end. `at` is the `recorded_at` of the event there,
    for check_log().

    Raises CheckpointConflict when another writer has moved it: roll back, and follow no longer.
    """
    cursor = connection.execute(_ADVANCE, _advancing(name, expected, position, at))
    _expect_one_row(cursor.rowcount, name, expected)


async def advance_async(
    connection: AsyncConnection[TupleRow], name: str, expected: int, position: int
) -> None:
    """As advance()."""
    cursor = await connection.execute(_ADVANCE, _advancing(name, expected, position, None))
    _expect_one_row(cursor.rowcount, name, expected)


def _advancing(name: str, expected: int, position: int, at: datetime | None) -> dict[str, object]:
    if position < expected:
        raise ValueError(f"a checkpoint cannot move back from {expected} to {position}")
    return {
        "name": name,
        "expected": expected,
        "position": position,
        "event_position": None if at is None else position,
        "event_at": at,
    }


def _expect_one_row(count: int, name: str, expected: int) -> None:
    if count != 1:
        raise CheckpointConflict(f"the checkpoint of {name} is no longer {expected}")


class PostgresTrackingRecorder(TrackingRecorder):
    """The library's tracking over the same table. Thread-safe; close it after use.

    Every call has one deadline; errors as those of events.recorder.PostgresTaskRecorder.
    """

    def __init__(self, connect: Connect, *, budget_seconds: float = BUDGET_SECONDS) -> None:
        self._connections = Connections(connect)
        self._budget = budget_seconds

    def insert_tracking(self, tracking: Tracking) -> None:
        """Raises IntegrityError unless the position is above the stored one. Not repeated after a lost
        connection: a second try could not tell its own first one from another follower's."""

        def work(connection: Connection[TupleRow]) -> int:
            parameters = (tracking.application_name, tracking.notification_id)
            count = connection.execute(_RAISE, parameters).rowcount
            if count:
                connection.execute(
                    "select pg_notify(%s, %s)", (READ_CHANNEL, str(tracking.notification_id))
                )
            return count

        if not self._connections.once(work, after(self._budget)):
            raise IntegrityError(
                f"{tracking.application_name} has already processed {tracking.notification_id}"
            )

    def max_tracking_id(self, application_name: str) -> int | None:
        def work(connection: Connection[TupleRow]) -> int:
            return checkpoint(connection, application_name)

        return self._connections.repeat(work, after(self._budget))[0] or None

    def close(self) -> None:
        self._connections.close()

    def wait(
        self,
        application_name: str,
        notification_id: int | None,
        timeout: float = 1.0,
        interrupt: Event | None = None,
    ) -> None:
        """Returns once the checkpoint has reached the position, told by NOTIFY and by polling. Raises
        TimeoutError, or WaitInterruptedError within 0.1 s of `interrupt`."""
        if self.has_tracking_id(application_name, notification_id):
            return
        deadline = time.monotonic() + timeout
        with translated_errors(), self._connections.open() as connection:
            connection.execute(f"listen {READ_CHANNEL}")
            while not self.has_tracking_id(application_name, notification_id):
                if interrupt is not None and interrupt.is_set():
                    raise WaitInterruptedError
                if remaining(deadline) == 0:
                    raise TimeoutError(f"{application_name} has not reached {notification_id} in time")
                _await_notification(connection, min(_POLL_SECONDS, remaining(deadline)))


def _await_notification(connection: Connection[TupleRow], seconds: float) -> None:
    for _ in connection.notifies(timeout=seconds, stop_after=1):
        return
