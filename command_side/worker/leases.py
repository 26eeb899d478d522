"""Renewal: tells that this process lives, and learns what others did to its attempts.

A thread with a connection of its own, so that a handler which blocks the event loop does not cost
the leases of its neighbours. But a loop that never ticks again must not keep its tasks for ever:
once it has been silent for a lease (5 s at least), renewal stops until it ticks, and the sweeper
gives the tasks to others after one more lease.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from command_side.worker.attempts import Attempt, Attempts, Progress
from command_side.worker.notes import Keys, no_keys, stored_notes
from command_side.worker.outage import Outage
from events.connections import Watchdog
from events.deadline import after
from events.errors import SchemaNotReady
from events.ids import queue_id
from taskledger.health import SILENT_SECONDS, Heartbeat
from taskledger.metrics import LEASES_LOST
from taskledger.telemetry import get_logger

_logger = get_logger(__name__)

RENEW_SECONDS: Final = 1.0
"""Also how late a cancel request and a pause may be noticed."""

# One statement: the holder's row, and a row for each attempt that has made progress. The counter comes
# from here and not from the row: after a crash of the database the (unlogged) table is empty.
_RENEW: Final = """
insert into taskledger.leases (holder, counter, lease_seconds, progress, note, info, renewed_at)
select u.holder, %b::bigint, %b::float8, u.progress, u.note, u.info, clock_timestamp()
from unnest(%b::text[], %b::float8[], %b::text[], %b::jsonb[]) as u(holder, progress, note, info)
on conflict (holder) do update set
    counter = excluded.counter, lease_seconds = excluded.lease_seconds, progress = excluded.progress,
    note = excluded.note, info = excluded.info, renewed_at = excluded.renewed_at
returning clock_timestamp()
"""
_LATER: Final = """
select k.key, e.topic
from unnest(%b::text[], %b::uuid[], %b::bigint[]) as k(key, id, version)
join taskledger.task_events e on e.originator_id = k.id and e.originator_version > k.version
order by e.notification_id
"""
# The last event of each queue: paused or resumed.
_PAUSED: Final = """
select q.id, e.topic
from unnest(%b::uuid[]) as q(id)
join lateral (
    select topic from taskledger.task_events
    where originator_id = q.id order by originator_version desc limit 1
) e on true
"""
_DELETE: Final = "delete from taskledger.leases where holder = any(%b::text[])"

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Renewed:
    """What one renewal found out; handed to the event loop."""

    database_time: datetime
    later: list[tuple[str, str]]
    """(attempt key, topic) of events that followed our TaskStarted."""
    paused: set[Pair]


class Lease:
    """This process's row, and its attempts' progress. Used by the renewal thread alone."""

    def __init__(
        self,
        holder: str,
        lease_seconds: float,
        info: Callable[[], dict[str, Any]],
        keys: Keys = no_keys,
    ) -> None:
        self._holder = holder
        self._lease_seconds = lease_seconds
        self._info = info
        self._keys = keys
        self._counter = 0
        self._stored: dict[str, Progress] = {}
        """What the attempts' rows hold."""

    def renew(
        self, connection: Connection[TupleRow], running: Sequence[Attempt], pairs: Sequence[Pair]
    ) -> Renewed:
        told = [a for a in running if a.progress is not None and self._stored.get(a.key) != a.progress]
        changed = {a.key: a.progress for a in told if a.progress is not None}
        notes = stored_notes(connection, self._keys, [(a, changed[a.key][1]) for a in told])
        self._counter += 1
        row = connection.execute(
            _RENEW,
            (
                self._counter,
                self._lease_seconds,
                [self._holder, *changed],
                [None, *(fraction for fraction, _ in changed.values())],
                [None, *notes],
                [Jsonb(self._info()), *(None for _ in changed)],
            ),
        ).fetchone()
        self._stored |= changed
        self._forget_ended(connection, {a.key for a in running})
        if row is None:
            raise psycopg.OperationalError("the renewal answered nothing")
        return Renewed(row[0], _later(connection, running), _paused(connection, pairs))

    def give_up(self, connection: Connection[TupleRow]) -> None:
        connection.execute(_DELETE, ([self._holder, *self._stored],))

    def _forget_ended(self, connection: Connection[TupleRow], running: set[str]) -> None:
        ended = [key for key in self._stored if key not in running]
        if ended:
            connection.execute(_DELETE, (ended,))
            for key in ended:
                del self._stored[key]


def _later(connection: Connection[TupleRow], running: Sequence[Attempt]) -> list[tuple[str, str]]:
    if not running:
        return []
    keys = [a.key for a in running]
    ids = [a.state.id for a in running]
    versions = [a.state.version for a in running]
    return [(str(key), str(topic)) for key, topic in connection.execute(_LATER, (keys, ids, versions))]


def _paused(connection: Connection[TupleRow], pairs: Sequence[Pair]) -> set[Pair]:
    ids: dict[UUID, Pair] = {queue_id(*pair): pair for pair in pairs}
    rows = connection.execute(_PAUSED, (list(ids),))
    return {ids[id_] for id_, topic in rows if topic == "QueuePaused"}


class Renewal:
    """The thread. Make it on the event loop."""

    def __init__(
        self,
        lease: Lease,
        attempts: Attempts,
        *,
        connect: Callable[[], Connection[TupleRow]],
        lease_seconds: float,
        heartbeat: Heartbeat,
        outage: Outage,
    ) -> None:
        self._lease = lease
        self._attempts = attempts
        self._connect = connect
        self._lease_seconds = lease_seconds
        # Soon enough for another connection to renew the lease in time.
        self._answer_seconds = min(5.0, max(1.0, lease_seconds / 3))
        self._fresh_for = lease_seconds / 2
        self._every = min(RENEW_SECONDS, lease_seconds / 5)
        self._pairs: Callable[[], Sequence[Pair]] = tuple
        self._publish: Callable[[Renewed], None] = _ignore
        self._heartbeat = heartbeat
        self._silence = Silence(max(lease_seconds, SILENT_SECONDS))
        self._outage = outage
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._renewed_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self, pairs: Callable[[], Sequence[Pair]], publish: Callable[[Renewed], None]) -> None:
        """`pairs` tells, in this thread, whose pauses are wanted; `publish` is called on the loop after
        each renewal."""
        self._pairs, self._publish = pairs, publish
        self._thread.start()

    @property
    def fresh(self) -> bool:
        """Whether new work may start: nobody can think us dead already."""
        return self._renewed_at is not None and time.monotonic() - self._renewed_at < self._fresh_for

    async def stop(self, seconds: float) -> None:
        """Deletes the lease. Where the database does not answer in time, it lapses instead."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, seconds)

    def _run(self) -> None:
        connection: Connection[TupleRow] | None = None
        try:
            while not self._stop.is_set():
                connection = self._tick(connection)
                pause = self._every if connection is not None else self._every * random.uniform(0.2, 1)  # noqa: S311  jitter
                self._stop.wait(pause)
            if connection is not None:
                self._lease.give_up(connection)
        except psycopg.Error as error:
            _logger.info("lease not given up", reason=type(error).__name__)
        finally:
            if connection is not None:
                connection.close()

    def _tick(self, connection: Connection[TupleRow] | None) -> Connection[TupleRow] | None:
        """One renewal; the connection to go on with, None after an error."""
        if self._silence.too_long(alive=self._heartbeat.alive()):
            return connection
        try:
            if connection is None:
                connection = self._connect()
            began = time.monotonic()
            # A server that is frozen, or hidden behind a dead network, would keep this thread for ever.
            with Watchdog(connection, after(self._answer_seconds)):
                found = self._lease.renew(connection, self._attempts.running(), self._pairs())
        except (psycopg.Error, SchemaNotReady) as error:
            self._outage.goes_on(" ".join(str(error).split()) or type(error).__name__)
            if connection is not None:
                connection.close()
            return None
        self._outage.over()
        self._note_loss(began)
        self._renewed_at = began
        if not self._stop.is_set():  # else the loop may be closed by now
            self._loop.call_soon_threadsafe(self._publish, found)
        return connection

    def _note_loss(self, now: float) -> None:
        """Frozen, or cut off for so long, our tasks may have been given to others."""
        if self._renewed_at is not None and now - self._renewed_at > self._lease_seconds:
            LEASES_LOST.inc()
            _logger.warning("the lease had lapsed", seconds=round(now - self._renewed_at, 1))


def _ignore(_: Renewed) -> None:
    """Before start() nobody listens."""


class Silence:
    """How long the event loop has not ticked, as far as the renewal thread has seen."""

    def __init__(self, allowed_seconds: float) -> None:
        self._allowed_seconds = allowed_seconds
        self._since: float | None = None

    def too_long(self, *, alive: bool) -> bool:
        if alive:
            self._since = None
            return False
        if self._since is None:
            self._since = time.monotonic()
            _logger.error("the event loop does not tick: does a handler block it?", seconds=SILENT_SECONDS)
        return time.monotonic() - self._since > self._allowed_seconds - SILENT_SECONDS
