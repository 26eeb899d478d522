"""Outcomes into the log: an attempt's result is not given up because the database is away."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from command_side.errors import AttemptSuperseded
from command_side.service import CommandService
from command_side.worker.attempts import Attempt
from command_side.worker.outage import Outage
from command_side.worker.outcomes import Outcome, command_of
from events.deadline import pauses
from events.errors import CommandRejected, LogError, TaskledgerError
from taskledger.metrics import FINISHES_SUPERSEDED
from taskledger.telemetry import get_logger

_logger = get_logger(__name__)

SLOW_SECONDS: Final = 5.0
"""Between tries while the log holds something this release does not know."""


class Finisher:
    def __init__(
        self,
        service: CommandService,
        outage: Outage,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._service = service
        self._outage = outage
        self._jitter = jitter
        self.counts: Counter[str] = Counter()
        """How attempts ended here, by outcome; `refused` are those the log would not take."""
        self._unreadable: set[str] = set()
        """Attempts of which that has been said."""

    async def finish(self, attempt: Attempt, outcome: Outcome) -> None:
        """Returns when the outcome is stored, or the log has refused it for good.

        Tries for as long as it takes, also past the lease: if the attempt has been given to somebody
        else by then, the log refuses it, and a result that is stored already is recognised.
        """
        self.counts[outcome.type] += 1
        command = command_of(outcome, attempt.number, self._jitter())
        if command is None:
            _logger.info("attempt superseded", task=str(attempt.state.id), attempt=attempt.number)
            return
        tries = pauses()
        while True:
            try:
                await self._service.execute_on(attempt.state, command)
            except CommandRejected as rejected:
                if not rejected.retryable:
                    self._refused(attempt, outcome, rejected)
                    return
                await asyncio.sleep(next(tries))
            except LogError as error:
                await self._wait_for_release(attempt, error)
            except TaskledgerError as error:
                self._outage.goes_on(f"{type(error).__name__}: {error}")
                await asyncio.sleep(next(tries) if error.retryable else SLOW_SECONDS)
            else:
                self._outage.over()
                return

    async def _wait_for_release(self, attempt: Attempt, error: LogError) -> None:
        """The task's history holds an event that this release cannot read. Only a later one can tell
        whether the attempt still counts: it takes over when this process is replaced. Until then the
        attempt keeps its slot, and the other slots go on."""
        if attempt.key not in self._unreadable:
            self._unreadable.add(attempt.key)
            _logger.error("outcome waits", task=str(attempt.state.id), reason=str(error))
        self._outage.over()
        await asyncio.sleep(SLOW_SECONDS)

    def _refused(self, attempt: Attempt, outcome: Outcome, rejected: CommandRejected) -> None:
        self.counts["refused"] += 1
        if isinstance(rejected, AttemptSuperseded):
            FINISHES_SUPERSEDED.inc()
        _logger.info(
            "outcome dropped",
            task=str(attempt.state.id),
            attempt=attempt.number,
            outcome=outcome.type,
            reason=rejected.code,
        )
