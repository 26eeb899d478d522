"""One attempt -> an outcome value. Knows timeouts and stops; nothing of Redis or the log."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, Final, Literal, Protocol

from command_side.worker.attempts import Attempt, Stop
from command_side.worker.outcomes import (
    Cancelled,
    Completed,
    Failed,
    HandedBack,
    Outcome,
    Superseded,
    TimedOut,
    error_of,
)
from command_side.worker.perform import perform, perform_blocking
from command_side.worker.threads import in_thread
from taskledger.registry import Execution

CLEANUP_SECONDS: Final = 5.0
"""How long a cancelled handler may take to put its things away before its outcome is decided without it."""


class Children(Protocol):
    def run(self, attempt: Attempt) -> Awaitable[Outcome]:
        """The attempt in a child process of its own; a cancellation kills it before it is raised."""
        ...


class Executor:
    def __init__(self, children: Children, *, cleanup_seconds: float = CLEANUP_SECONDS) -> None:
        self._children = children
        self._cleanup_seconds = cleanup_seconds

    async def run(self, attempt: Attempt) -> Outcome:
        """Runs the handler until it ends, its time is up, or the attempt is stopped.

        Never raises. Where the handler cannot be made to end, `attempt.lingering` says so.
        """
        execution = self.execution_of(attempt)
        began = time.monotonic()
        work = self._begin(attempt, execution)
        why = await _first(work, attempt, attempt.state.timeout_seconds)
        if why is None:
            return _result(work)
        if execution == "thread":
            return await self._stop_thread(attempt, work, why, began)
        return await self._stop_task(attempt, work, why)

    @staticmethod
    def execution_of(attempt: Attempt) -> Execution:
        """After a loss, alone in a child process: a poison task takes no neighbour with it again."""
        return "process" if attempt.state.isolated else attempt.kind.execution

    def _begin(self, attempt: Attempt, execution: Execution) -> asyncio.Future[Outcome]:
        kind, payload, context = attempt.kind, attempt.state.payload, attempt.context
        match execution:
            case "async":
                return asyncio.create_task(perform(kind, payload, context), name=attempt.key)
            case "thread":
                return in_thread(lambda: perform_blocking(kind, payload, context), name=attempt.key)
            case "process":
                return asyncio.ensure_future(self._children.run(attempt))

    async def _stop_task(self, attempt: Attempt, work: asyncio.Future[Outcome], why: "_Why") -> Outcome:
        """A handler that swallows its cancellation and returns has been stopped all the same: what it
        returned may be half done."""
        work.cancel()
        await asyncio.wait({work}, timeout=self._cleanup_seconds)
        if not work.done():
            attempt.lingering = work
        return _stopped(attempt, why)

    async def _stop_thread(
        self, attempt: Attempt, work: asyncio.Future[Outcome], why: "_Why", began: float
    ) -> Outcome:
        """A thread cannot be stopped: one whose task is cancelled may finish (it sees cancel_requested),
        any other is left to itself."""
        if why == "cancelled":
            left = began + attempt.state.timeout_seconds - time.monotonic()
            await asyncio.wait({work}, timeout=max(0.0, left))
            if work.done():
                outcome = _result(work)
                # Told and back early: its result is not the one that was asked for.
                early = isinstance(outcome, Completed) and attempt.told
                return Cancelled() if early else outcome
            why = "timeout"
        attempt.overran = why == "timeout"
        if not work.done():
            attempt.lingering = work
        return _stopped(attempt, why)


_Why = Stop | Literal["timeout"]


async def _first(work: asyncio.Future[Outcome], attempt: Attempt, seconds: float) -> _Why | None:
    """What ends the wait: None if it is the handler itself."""
    waiting: set[asyncio.Future[Any]] = {work, attempt.stopped}
    done, _ = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    # A thread that has seen that it is to end may return before we hear of the stop ourselves.
    if work in done and not attempt.told:
        return None
    return attempt.stopped.result() if attempt.stopped.done() else "timeout"


def _result(work: asyncio.Future[Outcome]) -> Outcome:
    if work.cancelled():
        return Failed(error_of(asyncio.CancelledError("the handler cancelled itself"), trace=False))
    error = work.exception()
    return work.result() if error is None else Failed(error_of(error))


def _stopped(attempt: Attempt, why: _Why) -> Outcome:
    match why:
        case "timeout":
            return TimedOut(attempt.state.timeout_seconds)
        case "cancelled":
            return Cancelled()
        case "handed_back":
            return HandedBack()
        case "superseded":
            return Superseded()
