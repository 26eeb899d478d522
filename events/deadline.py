"""One budget for a whole operation, set at the edge and carried down as a time.monotonic() value."""

import asyncio
import math
import random
import time
from collections.abc import Coroutine, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from events.errors import StoreUnavailable

T = TypeVar("T")

_abandoned: set[asyncio.Task[Any]] = set()
_latest: ContextVar[float] = ContextVar("taskledger_latest", default=math.inf)


def after(seconds: float) -> float:
    """Never later than what until() allows."""
    return min(time.monotonic() + seconds, _latest.get())


class until:  # noqa: N801  used like a function, and a generator would take twice as long
    """What is begun inside gets no longer than to the deadline, however long it would wait by itself:
    budgets of steps that follow one another do not add up."""

    __slots__ = ("_deadline", "_token")

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def __enter__(self) -> None:
        self._token = _latest.set(min(self._deadline, _latest.get()))

    def __exit__(self, *_: object) -> None:
        _latest.reset(self._token)


def remaining(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def pauses() -> Iterator[float]:
    """Seconds between one try and the next, for ever: from 20 ms to half a second at most, with full
    jitter, so that the clients of a server that comes back do not all return at once."""
    longest = 0.02
    while True:
        yield random.uniform(0, longest)  # noqa: S311  jitter
        longest = min(2 * longest, 0.5)


async def within(deadline: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, or StoreUnavailable once the deadline passes; then it is not even begun.

    psycopg answers a cancellation by asking the server to cancel and then waiting for it, which a
    frozen server or a dead network never does. So late work is not awaited any longer: it ends when
    its connection does, and its owner must discard that connection.
    """
    if remaining(deadline) == 0:
        work.close()
        raise StoreUnavailable("the deadline passed before the database was asked")
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=remaining(deadline))
    except asyncio.CancelledError:
        _abandon(task)
        raise
    if not done:
        _abandon(task)
        raise StoreUnavailable("the database did not answer in time")
    return task.result()


def _abandon(task: asyncio.Task[Any]) -> None:
    _abandoned.add(task)
    task.add_done_callback(_retrieve)
    task.cancel()


def _retrieve(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # read, so that asyncio does not report what nobody waits for any more
