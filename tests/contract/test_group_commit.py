"""What GroupCommit promises to each of many callers, over a log whose answers the test holds back."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from events.append import AppendCommand, Appended, Conflict, Outcome, StreamAppend
from events.deadline import after
from events.errors import Overloaded, StoreUnavailable
from events.group_commit import GroupCommit
from events.ids import new_task_id
from events.memory_log import MemoryLog
from events.postgres_log import PostgresLog
from tests.contract.builders import command, idempotency_key, stored_event
from tests.support import eventually


@dataclass
class GatedLog:
    """Appends nothing while its gate is closed; remembers every group it was given."""

    log: MemoryLog = field(default_factory=MemoryLog)
    groups: list[list[AppendCommand]] = field(default_factory=list[list[AppendCommand]])
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    failures: dict[int, Exception] = field(default_factory=dict[int, Exception])
    """What the n-th group meets instead of the log."""

    async def append(self, commands: Sequence[AppendCommand], *, deadline: float) -> list[Outcome]:
        self.groups.append(list(commands))
        number = len(self.groups)
        await self.gate.wait()
        if number in self.failures:
            raise self.failures[number]
        return await self.log.append(commands, deadline=deadline)

    async def busy(self, commits: GroupCommit) -> asyncio.Task[Outcome]:
        """Gives it one append of its own, so that what follows gathers meanwhile."""
        task = asyncio.create_task(commits.append(command()))
        await eventually(self._is_under_way, "the first append to be under way")
        return task

    async def _is_under_way(self) -> bool:
        return len(self.groups) > 0


@pytest.fixture
def log() -> GatedLog:
    return GatedLog()


async def _start(commits: GroupCommit, *commands: AppendCommand) -> list[asyncio.Task[Outcome]]:
    """One waiting caller a command, in order."""
    tasks = [asyncio.create_task(commits.append(c)) for c in commands]
    for _ in range(3):
        await asyncio.sleep(0)  # each caller runs until it waits
    return tasks


async def test_an_append_does_not_wait_for_others(log: GatedLog) -> None:
    log.gate.set()
    commits = GroupCommit(log)
    outcome = await commits.append(command())
    assert isinstance(outcome, Appended)
    assert [len(group) for group in log.groups] == [1]


async def test_what_arrives_meanwhile_is_the_next_group_in_order(log: GatedLog) -> None:
    commits = GroupCommit(log)
    first = await log.busy(commits)
    commands = [command() for _ in range(20)]
    tasks = await _start(commits, *commands)
    log.gate.set()
    outcomes = await asyncio.gather(first, *tasks)
    assert log.groups[1:] == [commands]
    assert [o.first_position for o in outcomes if isinstance(o, Appended)] == list(range(1, 22))


async def test_each_caller_is_given_its_own_outcome(log: GatedLog) -> None:
    log.gate.set()
    commits = GroupCommit(log)
    task = new_task_id()
    await commits.append(command(of=task))
    outcomes = await asyncio.gather(
        commits.append(command()), commits.append(command(of=task)), commits.append(command())
    )
    assert [type(o) for o in outcomes] == [Appended, Conflict, Appended]


async def test_a_group_holds_one_command_of_a_stream_and_keeps_their_order(log: GatedLog) -> None:
    commits = GroupCommit(log)
    first = await log.busy(commits)
    a, b = new_task_id(), new_task_id()
    a1, a2, a3, b1, b2 = (
        command(1, of=a),
        command(2, of=a),
        command(3, of=a),
        command(1, of=b),
        command(2, of=b),
    )
    tasks = await _start(commits, a1, a2, b1, a3, b2)
    log.gate.set()
    outcomes = await asyncio.gather(first, *tasks)
    assert all(isinstance(o, Appended) for o in outcomes)
    assert log.groups[1:] == [[a1, b1], [a2, b2], [a3]]


async def test_a_batch_that_waits_holds_back_what_comes_after_it_in_its_streams(log: GatedLog) -> None:
    commits = GroupCommit(log)
    first = await log.busy(commits)
    a, b = new_task_id(), new_task_id()
    a1, b2 = command(1, of=a), command(2, of=b)
    batch = AppendCommand([*command(2, of=a).streams, *command(1, of=b).streams])
    tasks = await _start(commits, a1, batch, b2)
    log.gate.set()
    outcomes = await asyncio.gather(first, *tasks)
    assert all(isinstance(o, Appended) for o in outcomes)
    assert log.groups[1:] == [[a1], [batch], [b2]]


async def test_a_group_holds_one_command_of_an_idempotency_key(log: GatedLog) -> None:
    commits = GroupCommit(log)
    first = await log.busy(commits)
    commands = [command(key=idempotency_key()), command(key=idempotency_key()), command()]
    tasks = await _start(commits, *commands)
    log.gate.set()
    outcomes = await asyncio.gather(first, *tasks)
    assert [type(o).__name__ for o in outcomes] == ["Appended", "Appended", "Replayed", "Appended"]
    assert [len(group) for group in log.groups[1:]] == [2, 1]


async def test_a_group_is_bounded_in_bytes(log: GatedLog) -> None:
    commits = GroupCommit(log, max_group_bytes=10_000)
    first = await log.busy(commits)
    big = [_sized(4_000) for _ in range(5)]
    tasks = await _start(commits, *big)
    log.gate.set()
    await asyncio.gather(first, *tasks)
    assert log.groups[1:] == [big[:2], big[2:4], big[4:]]


async def test_a_command_above_the_bound_goes_alone(log: GatedLog) -> None:
    commits = GroupCommit(log, max_group_bytes=10_000)
    first = await log.busy(commits)
    small, huge, after_it = command(), _sized(50_000), command()
    tasks = await _start(commits, small, huge, after_it)
    log.gate.set()
    await asyncio.gather(first, *tasks)
    assert log.groups[1:] == [[small], [huge], [after_it]]


async def test_too_many_waiting_are_refused_at_once(log: GatedLog) -> None:
    commits = GroupCommit(log, max_waiting=3)
    first = await log.busy(commits)
    tasks = await _start(commits, *(command() for _ in range(3)))
    with pytest.raises(Overloaded):
        await commits.append(command())
    log.gate.set()
    await asyncio.gather(first, *tasks)
    assert isinstance(await commits.append(command()), Appended)


async def test_append_many_is_refused_whole(log: GatedLog) -> None:
    log.gate.set()
    commits = GroupCommit(log, max_waiting=3)
    with pytest.raises(Overloaded):
        await commits.append_many([command() for _ in range(4)])
    assert log.groups == []


async def test_append_many_answers_in_order(log: GatedLog) -> None:
    log.gate.set()
    commits = GroupCommit(log)
    task = new_task_id()
    outcomes = await commits.append_many([command(of=task), command(of=task), command(2, of=task)])
    assert [type(o) for o in outcomes] == [Appended, Conflict, Appended]


async def test_a_command_whose_deadline_has_passed_is_never_sent(log: GatedLog) -> None:
    commits = GroupCommit(log, budget_seconds=0)
    with pytest.raises(StoreUnavailable):
        await commits.append(command())
    assert log.groups == []


async def test_a_store_that_does_not_answer_fails_the_whole_group(log: GatedLog) -> None:
    commits = GroupCommit(log)
    first = await log.busy(commits)
    tasks = await _start(commits, command(), command())
    log.failures[2] = StoreUnavailable("away")
    log.gate.set()
    answers = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Appended, StoreUnavailable, StoreUnavailable]
    assert isinstance(await commits.append(command()), Appended)


async def test_a_cancelled_caller_does_not_undo_its_append(log: GatedLog) -> None:
    commits = GroupCommit(log)
    task = await log.busy(commits)
    neighbour = (await _start(commits, command()))[0]
    task.cancel()
    log.gate.set()
    assert isinstance(await neighbour, Appended)
    await commits.drain()
    assert await log.log.head() == 2


async def test_drain_returns_when_nothing_waits(log: GatedLog) -> None:
    commits = GroupCommit(log)
    await commits.drain()
    first = await log.busy(commits)
    tasks = await _start(commits, *(command() for _ in range(5)))
    draining = asyncio.create_task(commits.drain())
    log.gate.set()
    await draining
    assert all(task.done() for task in [first, *tasks])
    assert await log.log.head() == 6


async def test_a_poisoned_command_fails_alone(
    postgres_log: PostgresLog, caplog: pytest.LogCaptureFixture
) -> None:
    commits = GroupCommit(postgres_log)
    sane = [command() for _ in range(3)]
    task = new_task_id()
    # A text column cannot hold NUL: the server, or the driver, refuses the whole statement.
    poisoned = AppendCommand([StreamAppend(task, [stored_event(of=task)], kind="nul\x00")])
    answers = await asyncio.gather(
        *(commits.append(c) for c in [sane[0], poisoned, *sane[1:]]), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [Appended, StoreUnavailable, Appended, Appended]
    assert "an append was refused by the server" in caplog.text
    assert await postgres_log.head() == 3


async def test_many_callers_on_a_real_log_are_all_answered(postgres_log: PostgresLog) -> None:
    commits = GroupCommit(postgres_log)
    outcomes = await asyncio.gather(*(commits.append(command()) for _ in range(500)))
    positions = [o.first_position for o in outcomes if isinstance(o, Appended)]
    assert sorted(positions) == list(range(1, 501))
    await commits.drain()
    assert await postgres_log.append([command()], deadline=after(5)) != []


def _sized(size: int) -> AppendCommand:
    task = new_task_id()
    return AppendCommand([StreamAppend(task, [stored_event(of=task, state=bytes(size))])])
