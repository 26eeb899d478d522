"""Outcomes that are stored together, over a real database: none of them suffers from what is wrong with
another, and none is stored twice."""

from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from command_side.commands import FailTask, StartTask, TaskCommand
from command_side.service import NOBODY, Applied, CommandService, Origin
from command_side.worker.attempts import Attempt
from command_side.worker.finish import Finisher
from command_side.worker.outage import Outage
from command_side.worker.outcomes import Completed, Failed, Outcome
from events.errors import CommandRejected, StoreUnavailable
from events.task_events import TaskError
from events.task_state import TaskState
from taskledger import TaskContext, task
from taskledger.registry import Kind
from tests.integration.projection import append_raw
from tests.support import Service, eventually

STARTED = ["TaskCreated", "TaskStarted"]
COMPLETED = [*STARTED, "TaskCompleted"]
Work = Sequence[tuple[TaskState, TaskCommand]]
Answers = list[Applied | CommandRejected]


async def add(payload: object, ctx: TaskContext) -> object:
    return payload, ctx


class Commands(CommandService):
    """Counts how many were asked for at once; `before` and `after` may raise."""

    before: Callable[[Work], None] | None = None
    after: Callable[[Work], None] | None = None

    def __init__(self, service: Service) -> None:
        super().__init__(service.log, service.commits, service.mapper, service.clock)
        self.sizes: list[int] = []

    async def execute_each(self, work: Work, origin: Origin = NOBODY) -> Answers:
        self.sizes.append(len(work))
        if self.before is not None:
            self.before(work)
        answers = await super().execute_each(work, origin)
        if self.after is not None:
            self.after(work)
        return answers


class Finishing:
    """A finisher, and how often each attempt was said to be over."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.commands = Commands(service)
        self.outage = Outage("PostgreSQL")
        self.finisher = Finisher(self.commands, self.outage, jitter=lambda: 0.5)
        self.over = Counter[Attempt]()

    async def started(self, count: int) -> list[Attempt]:
        kind: Kind = vars(task("sum")(add))["__taskledger_kind__"]
        command = StartTask(holder="h", worker="w")
        ids = [(await self.service.create()).id for _ in range(count)]
        return [Attempt((await self.service.execute(i, command)).state, kind) for i in ids]

    def finish(self, attempt: Attempt, outcome: Outcome | None = None) -> None:
        result = Completed({"sum": 3}, 0.1) if outcome is None else outcome
        self.finisher.finish(attempt, result, lambda a: self.over.update([a]))

    async def until_over(self, attempts: Sequence[Attempt]) -> None:
        async def condition() -> bool:
            return all(self.over[attempt] for attempt in attempts)

        await eventually(condition, "the attempts are over")
        assert [self.over[a] for a in attempts] == [1] * len(attempts)

    async def topics(self, attempt: Attempt) -> list[str]:
        return await self.service.topics(attempt.state.id)


@pytest.fixture
def finishing(service: Service) -> Finishing:
    return Finishing(service)


async def test_what_ends_together_is_stored_together(finishing: Finishing) -> None:
    attempts = await finishing.started(3)
    for attempt in attempts:
        finishing.finish(attempt)
    await finishing.until_over(attempts)
    assert finishing.commands.sizes == [3]
    states = [await finishing.service.state(a.state.id) for a in attempts]
    assert [state.position for state in states] == [7, 8, 9]
    assert [state.result for state in states] == [{"sum": 3}] * 3


async def test_a_refused_outcome_is_dropped_and_its_neighbours_are_not(finishing: Finishing) -> None:
    attempts = await finishing.started(3)
    lost = attempts[1]
    await finishing.service.execute(lost.state.id, FailTask(attempt=1, cause="lost"))
    for attempt in attempts:
        finishing.finish(attempt)
    await finishing.until_over(attempts)
    assert finishing.commands.sizes == [3]
    assert finishing.finisher.counts == {"completed": 3, "refused": 1}
    assert (await finishing.topics(lost))[2:] == ["TaskFailed", "TaskQueued"]
    assert [await finishing.topics(a) for a in (attempts[0], attempts[2])] == [COMPLETED] * 2


async def test_a_history_of_a_later_release_holds_up_its_own_outcome_alone(finishing: Finishing) -> None:
    """The batch fails once its other outcomes are stored: each is recognised when it is tried again."""
    attempts = await finishing.started(3)
    completes, waits, fails = attempts
    later = await append_raw(finishing.service, waits.state.id, 3, "TaskTeleported", b"{}")
    finishing.finish(completes)
    finishing.finish(waits)
    finishing.finish(fails, Failed(TaskError(type="ValueError", message="no")))
    await finishing.until_over([completes, fails])
    assert finishing.finisher.counts == {"completed": 2, "failed": 1}
    assert await finishing.topics(completes) == COMPLETED
    assert await finishing.topics(fails) == [*STARTED, "TaskFailed"]
    assert await finishing.service.log.head() == later + 2  # each once
    assert finishing.over[waits] == 0
    finishing.finisher.abandon()


@pytest.mark.parametrize("lost", ["before", "after"])
async def test_outcomes_outlast_a_database_that_is_away(finishing: Finishing, lost: str) -> None:
    """Its answer is lost, before or after it has stored them -> each is in the log once."""
    attempts = await finishing.started(3)

    def away(work: Work) -> None:
        if len(work) > 1:
            raise StoreUnavailable("away")

    setattr(finishing.commands, lost, away)
    for attempt in attempts:
        finishing.finish(attempt)
    await finishing.until_over(attempts)
    assert finishing.commands.sizes == [3, 1, 1, 1]
    assert finishing.outage.reason is None
    assert [await finishing.topics(a) for a in attempts] == [COMPLETED] * 3
    assert finishing.finisher.counts == {"completed": 3}


async def test_a_defect_met_by_one_outcome_takes_no_other_with_it(
    finishing: Finishing, capfd: pytest.CaptureFixture[str]
) -> None:
    """It stays running in the log, and its slot is free; its neighbours are stored."""
    attempts = await finishing.started(3)
    faulty = attempts[1]

    def fall_over(work: Work) -> None:
        if any(state.id == faulty.state.id for state, _ in work):
            raise ZeroDivisionError("a defect")

    finishing.commands.before = fall_over
    for attempt in attempts:
        finishing.finish(attempt)
    await finishing.until_over(attempts)
    assert [await finishing.topics(a) for a in attempts] == [COMPLETED, STARTED, COMPLETED]
    assert "attempt not finished" in capfd.readouterr().out


async def test_what_is_abandoned_is_not_stored_later(finishing: Finishing) -> None:
    attempts = await finishing.started(2)
    finishing.finish(attempts[0])
    finishing.finisher.abandon()
    finishing.finish(attempts[1])
    await finishing.until_over(attempts[1:])
    assert finishing.commands.sizes == [1]
    assert await finishing.topics(attempts[0]) == STARTED
