"""One attempt -> an outcome value. Knows timeouts and stops; nothing of Redis or the log.

A handler that ends by itself costs no task but its own: callbacks wait for its end, its time and a stop.
Only where one has to be stopped does a task of ours see to it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal, Protocol

from command_side.worker.attempts import Attempt, Stop
from command_side.worker.outcomes import (
    Cancelled,
    Completed,
    Discarded,
    Failed,
    HandedBack,
    Outcome,
    Superseded,
    TimedOut,
    error_of,
)
from command_side.worker.perform import perform, perform_blocking
from command_side.worker.threads import in_thread
from events.envelopes import Erased
from events.task_events import ERASED_ERROR
from taskledger.registry import Execution

CLEANUP_SECONDS: Final = 5.0
"""How long a cancelled handler may take to put its things away before its outcome is decided without it."""

Ended = Callable[[Attempt, Outcome], None]


class Children(Protocol):
    def run(self, attempt: Attempt) -> Awaitable[Outcome]:
        """The attempt in a child process of its own; a cancellation kills it before it is raised."""
        ...


class Executor:
    def __init__(self, children: Children, *, cleanup_seconds: float = CLEANUP_SECONDS) -> None:
        self._children = children
        self._cleanup_seconds = cleanup_seconds

    def start(self, attempt: Attempt, ended: Ended) -> None:
        """Runs the handler until it ends, its time is up, or the attempt is stopped, and calls `ended`
        once, on a later pass of the event loop. Of a task whose data was erased no handler is called.

        Where the handler cannot be made to end, `attempt.lingering` says so. Raises what keeps the
        handler from being begun at all; then `ended` is not called.
        """
        if isinstance(attempt.state.payload, Erased):
            asyncio.get_running_loop().call_soon(ended, attempt, Discarded(ERASED_ERROR))
            return
        _Watch(attempt, self.execution_of(attempt), self._begin, self._cleanup_seconds, ended)

    @staticmethod
    def execution_of(attempt: Attempt) -> Execution:
        """After a loss, alone in a child process: a poison task takes no neighbour with it again."""
        return "process" if attempt.state.isolated else attempt.kind.execution

    def _begin(self, attempt: Attempt, execution: Execution) -> asyncio.Future[Outcome]:
        kind, payload, context = attempt.kind, attempt.state.payload, attempt.context
        match execution:
            case "async":
                return asyncio.create_task(perform(kind, payload, context))
            case "thread":
                return in_thread(lambda: perform_blocking(kind, payload, context), name=attempt.key)
            case "process":
                return asyncio.ensure_future(self._children.run(attempt))


_Why = Stop | Literal["timeout"]


class _Watch:
    """Sees one running handler to its outcome."""

    def __init__(
        self,
        attempt: Attempt,
        execution: Execution,
        begin: Callable[[Attempt, Execution], asyncio.Future[Outcome]],
        cleanup_seconds: float,
        ended: Ended,
    ) -> None:
        self._attempt = attempt
        self._execution = execution
        self._cleanup_seconds = cleanup_seconds
        self._ended = ended
        self._decided = False
        """Whether it is known what ends the wait."""
        self._began = time.monotonic()
        # Before the handler begins: one that is stopped already is not to begin at all.
        attempt.stopped.add_done_callback(self._stopped)
        try:
            self._work = begin(attempt, execution)
        except BaseException:
            self._decided = True
            raise
        self._timer = asyncio.get_running_loop().call_later(attempt.state.timeout_seconds, self._time_is_up)
        self._work.add_done_callback(self._work_done)

    def _work_done(self, work: asyncio.Future[Outcome]) -> None:
        if self._decided:
            return
        if self._attempt.told:
            # A thread that has seen that it is to end may return before we hear of the stop ourselves.
            stopped = self._attempt.stopped
            self._stop(stopped.result() if stopped.done() else "timeout")
        else:
            self._decide()
            self._ended(self._attempt, _result(work))

    def _stopped(self, stopped: asyncio.Future[Stop]) -> None:
        self._interrupt(stopped.result())

    def _time_is_up(self) -> None:
        self._interrupt("timeout")

    def _interrupt(self, why: _Why) -> None:
        # A handler that has ended by now has made it, though we have not been told yet.
        if not self._decided and not self._work.done():
            self._stop(why)

    def _decide(self) -> None:
        self._decided = True
        self._timer.cancel()
        self._attempt.stopped.remove_done_callback(self._stopped)

    def _stop(self, why: _Why) -> None:
        self._decide()
        if self._execution != "thread":
            self._work.cancel()  # at once: a handler that has not begun never will
        self._stopping = asyncio.create_task(self._end(why), name=f"stop-{self._attempt.key}")

    async def _end(self, why: _Why) -> None:
        outcome = await (self._stop_thread(why) if self._execution == "thread" else self._stop_task(why))
        self._ended(self._attempt, outcome)

    async def _stop_task(self, why: _Why) -> Outcome:
        """A handler that swallows its cancellation and returns has been stopped all the same: what it
        returned may be half done."""
        await asyncio.wait({self._work}, timeout=self._cleanup_seconds)
        if not self._work.done():
            self._attempt.lingering = self._work
        return _outcome_of_stop(self._attempt, why)

    async def _stop_thread(self, why: _Why) -> Outcome:
        """A thread cannot be stopped: one whose task is cancelled may finish (it sees cancel_requested),
        any other is left to itself."""
        attempt, work = self._attempt, self._work
        if why == "cancelled":
            left = self._began + attempt.state.timeout_seconds - time.monotonic()
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
        return _outcome_of_stop(attempt, why)


def _result(work: asyncio.Future[Outcome]) -> Outcome:
    if work.cancelled():
        return Failed(error_of(asyncio.CancelledError("the handler cancelled itself"), trace=False))
    error = work.exception()
    return work.result() if error is None else Failed(error_of(error))


def _outcome_of_stop(attempt: Attempt, why: _Why) -> Outcome:
    match why:
        case "timeout":
            return TimedOut(attempt.state.timeout_seconds)
        case "cancelled":
            return Cancelled()
        case "handed_back":
            return HandedBack()
        case "superseded":
            return Superseded()
