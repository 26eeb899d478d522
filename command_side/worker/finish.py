"""Outcomes into the log: an attempt's result is not given up because the database is away."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from command_side.commands import CompleteTask, FailTask
from command_side.errors import AttemptSuperseded
from command_side.service import Applied, CommandService
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


_DEFECT: Final = "attempt not finished"
"""By a defect of ours. It stays running in the log until its timeout is swept."""

Over = Callable[[Attempt], None]


@dataclass(frozen=True, slots=True)
class _Finished:
    attempt: Attempt
    outcome: Outcome
    command: CompleteTask | FailTask
    over: Over


class Finisher:
    """Outcomes of one pass of the event loop are stored together. If that fails, each goes its own way:
    what is wrong with one of them holds up no other."""

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
        self._gathered: list[_Finished] = []
        self._storing: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()
        """How attempts ended here, by outcome; `refused` are those the log would not take."""
        self._unreadable: set[str] = set()
        """Attempts of which that has been said."""

    def finish(self, attempt: Attempt, outcome: Outcome, over: Over) -> None:
        """Calls `over` when the outcome is stored, or the log has refused it for good.

        Tries for as long as it takes, also past the lease: if the attempt has been given to somebody
        else by then, the log refuses it, and a result that is stored already is recognised.
        """
        self.counts[outcome.type] += 1
        command = command_of(outcome, attempt.number, self._jitter())
        if command is None:
            _logger.info("attempt superseded", task=str(attempt.state.id), attempt=attempt.number)
            over(attempt)
            return
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._begin)
        self._gathered.append(_Finished(attempt, outcome, command, over))

    def abandon(self) -> None:
        """What is not stored yet is given up."""
        self._gathered.clear()
        for task in self._storing:
            task.cancel()

    def _begin(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._spawn(self._store(gathered))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _store(self, gathered: Sequence[_Finished]) -> None:
        """All of them with one append; those that it did not settle, each by itself."""
        try:
            answers = await self._service.execute_each([(f.attempt.state, f.command) for f in gathered])
        except Exception as error:  # noqa: BLE001  each is told what is wrong with it when it is tried alone
            if isinstance(error, TaskledgerError) and not isinstance(error, LogError):
                self._outage.goes_on(f"{type(error).__name__}: {error}")
            for finished in gathered:
                self._spawn(self._insist(finished))
            return
        self._outage.over()
        for finished, answer in zip(gathered, answers, strict=True):
            if isinstance(answer, Applied):
                finished.over(finished.attempt)
            elif answer.retryable:
                self._spawn(self._insist(finished))
            else:
                self._refused(finished.attempt, finished.outcome, answer)
                finished.over(finished.attempt)

    async def _insist(self, finished: _Finished) -> None:
        try:
            await self._store_alone(finished)
        except Exception:
            _logger.exception(_DEFECT, attempts=[finished.attempt.key])
        finished.over(finished.attempt)

    async def _store_alone(self, finished: _Finished) -> None:
        """After a first try, together with others, that did not settle it."""
        tries = pauses()
        while True:
            await asyncio.sleep(next(tries))
            try:
                await self._service.execute_on(finished.attempt.state, finished.command)
            except CommandRejected as rejected:
                if not rejected.retryable:
                    self._refused(finished.attempt, finished.outcome, rejected)
                    return
            except LogError as error:
                await self._wait_for_release(finished.attempt, error)
            except TaskledgerError as error:
                self._outage.goes_on(f"{type(error).__name__}: {error}")
                if not error.retryable:
                    await asyncio.sleep(SLOW_SECONDS)
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
