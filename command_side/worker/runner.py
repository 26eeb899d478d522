"""The slots of a worker: each is taken by one attempt from its start to the end of its handler.

While its outcome is being stored, the next one is started already: both go to the log with one append. As
many may wait for that as there are slots; beyond, a log that does not answer stops the intake.
"""

import asyncio
from collections.abc import Callable

from command_side.worker.attempts import Attempt, Attempts
from command_side.worker.executor import Executor
from command_side.worker.finish import Finisher
from command_side.worker.outcomes import Outcome
from taskledger.telemetry import get_logger

_logger = get_logger(__name__)


class Runner:
    def __init__(
        self,
        executor: Executor,
        finisher: Finisher,
        attempts: Attempts,
        *,
        concurrency: int,
        on_worn_out: Callable[[], None],
    ) -> None:
        self._executor = executor
        self._finisher = finisher
        self._attempts = attempts
        self._concurrency = concurrency
        self._on_worn_out = on_worn_out
        self._running: set[Attempt] = set()
        """Until the outcome is stored."""
        self._executing = 0
        self._stuck: set[asyncio.Future[object]] = set()
        self._changed = asyncio.Event()

    @property
    def free(self) -> int:
        slots = self._concurrency - self._executing - len(self._stuck)
        return min(slots, 2 * self._concurrency - len(self._running))

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def stuck(self) -> int:
        """Slots of handlers that overran and would not stop."""
        return len(self._stuck)

    async def wait_free(self) -> None:
        while self.free <= 0:
            self._changed.clear()
            await self._changed.wait()

    async def wait_idle(self) -> None:
        """Until no attempt waits for its outcome to be stored; handlers that are stuck do not count."""
        while self._running:
            self._changed.clear()
            await self._changed.wait()

    def start(self, attempt: Attempt) -> None:
        self._attempts.add(attempt)
        self._running.add(attempt)
        self._executing += 1
        try:
            self._executor.start(attempt, self._ended)
        except Exception:
            self._executing -= 1
            # The attempt stays running in the log until its timeout is swept.
            _logger.exception("attempt not begun", task=str(attempt.state.id), attempt=attempt.number)
            self.over(attempt)

    def hand_back(self) -> None:
        """Ends every handler that still runs."""
        for attempt in self._attempts.running():
            attempt.stop("handed_back")

    def abandon(self) -> None:
        """Gives up storing outcomes: the process ends, and the sweeper will find the attempts lost."""
        self._finisher.abandon()
        for attempt in list(self._running):
            self.over(attempt)

    def over(self, attempt: Attempt) -> None:
        """Its outcome is stored, or will not be: its slot is free."""
        attempt.ended = True
        self._attempts.remove(attempt)
        self._running.discard(attempt)
        self._changed.set()

    def _ended(self, attempt: Attempt, outcome: Outcome) -> None:
        attempt.ended = True
        self._executing -= 1
        if attempt.lingering is not None:
            self._keep_slot(attempt, attempt.lingering)
        self._changed.set()
        self._finisher.finish(attempt, outcome, self.over)

    def _keep_slot(self, attempt: Attempt, lingering: "asyncio.Future[object]") -> None:
        _logger.warning(
            "handler does not stop",
            task=str(attempt.state.id),
            attempt=attempt.number,
            kind=attempt.kind.name,
        )
        self._stuck.add(lingering)
        lingering.add_done_callback(self._returned)
        if 2 * len(self._stuck) >= self._concurrency:
            self._on_worn_out()

    def _returned(self, lingering: "asyncio.Future[object]") -> None:
        self._stuck.discard(lingering)
        self._changed.set()
