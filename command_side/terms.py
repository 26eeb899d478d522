"""Processes of which one leads and the others stand by: what they do around their work."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import psycopg

from events.errors import SchemaNotReady
from events.migrate import check_schema
from taskledger.health import Heartbeat
from taskledger.leader import Leader
from taskledger.postgres import connect_sync
from taskledger.telemetry import get_logger

TICK_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 2.0

_logger = get_logger(__name__)


class Status(Protocol):
    waiting_for: dict[str, str]
    """What is missing (`postgres`, `redis`, `log`) and why."""


class Outage:
    """Something the process needs is away: one line when it goes, one when it is back. `what` is its name
    in the status."""

    def __init__(self, what: str, status: Status) -> None:
        self._what = what
        self._status = status
        self._pause = 0.0

    @property
    def on(self) -> bool:
        return self._pause > 0

    def goes_on(self, reason: str) -> float:
        """Says so, the first time; returns how many seconds to wait before the next try: more each
        time, with jitter, so that what comes back is not met by everybody at once."""
        if self._what not in self._status.waiting_for:
            _logger.warning("waiting", what=self._what, reason=reason)
        self._status.waiting_for[self._what] = reason
        self._pause = min(max(0.2, 2 * self._pause), _LONGEST_PAUSE_SECONDS)
        return self._pause * random.uniform(0.5, 1.0)  # noqa: S311  jitter

    def is_over(self) -> None:
        if self._status.waiting_for.pop(self._what, None) is not None:
            _logger.info("no longer waiting", what=self._what)
        self._pause = 0.0


class TermOver(Exception):  # noqa: N818  an end, not an error
    """The leader was told to stop, or leads no more."""


async def end_of_term(leader: Leader, stop: asyncio.Event) -> None:
    """Raises TermOver, when it is over."""
    waits = [asyncio.create_task(event.wait()) for event in (leader.lost, stop)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    raise TermOver


async def until_told_to_stop(
    serve: Callable[[asyncio.Event], Awaitable[None]], heartbeat: Heartbeat
) -> None:
    """Runs `serve`, whose event SIGTERM and SIGINT set, and ticks meanwhile."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ticking = asyncio.create_task(_tick(heartbeat), name="heartbeat")
    try:
        await serve(stop)
    finally:
        ticking.cancel()


async def _tick(heartbeat: Heartbeat) -> None:
    while True:
        heartbeat.tick()
        await asyncio.sleep(TICK_SECONDS)


async def wait_for_schema(dsn: str, stop: asyncio.Event, status: Status, *, name: str) -> bool:
    """Whether the database is there and migrated; False if `stop` came first."""
    outage = Outage("postgres", status)
    while not stop.is_set():
        try:
            await asyncio.to_thread(_check_schema, dsn, name)
        except (psycopg.OperationalError, SchemaNotReady) as error:
            reason = str(error) if isinstance(error, SchemaNotReady) else "PostgreSQL does not answer"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), outage.goes_on(reason))
        else:
            outage.is_over()
            return True
    return False


def _check_schema(dsn: str, name: str) -> None:
    with connect_sync(dsn, name=name) as connection:
        check_schema(connection)
