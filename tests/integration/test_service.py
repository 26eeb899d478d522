"""CommandService over a real database: what an answer says is what the log holds."""

import asyncio

import pytest

from command_side.commands import (
    CancelTask,
    CompleteTask,
    CreateTask,
    FailTask,
    StartTask,
    TaskCommand,
)
from command_side.errors import AttemptSuperseded, IdempotencyKeyReused, TaskNotFound, WrongState
from command_side.service import Applied, Origin
from events.append import IdempotencyKey
from events.ids import new_task_id
from events.task_state import TaskState
from tests.support import Service


async def test_a_task_lives_from_created_to_completed(service: Service) -> None:
    task = await service.create(payload={"x": 1, "y": 2})
    started = await service.execute(task.id, StartTask(holder="h", worker="w"))
    done = await service.commands.execute_on(started.state, CompleteTask(1, {"sum": 3}))

    assert (task.status, task.version, task.position) == ("queued", 1, 1)
    assert (done.state.status, done.state.version, done.position) == ("completed", 3, 3)
    assert await service.state(task.id) == done.state
    assert await service.topics(task.id) == ["TaskCreated", "TaskStarted", "TaskCompleted"]


async def test_a_repeated_completion_changes_nothing(service: Service) -> None:
    task = await service.create()
    await service.execute(task.id, StartTask(holder="h", worker="w"))
    first = await service.execute(task.id, CompleteTask(1, {"sum": 3}))
    again = await service.execute(task.id, CompleteTask(1, {"sum": 3}))

    assert (again.changed, again.state) == (False, first.state)
    with pytest.raises(WrongState):
        await service.execute(task.id, CompleteTask(1, {"sum": 4}))


async def test_of_many_concurrent_starts_one_wins(service: Service) -> None:
    task = await service.create()
    answers = await asyncio.gather(
        *(service.execute(task.id, StartTask(holder=f"h{n}", worker="w")) for n in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(a, Applied) for a in answers) == 1
    assert sum(isinstance(a, WrongState) for a in answers) == 19
    assert (await service.state(task.id)).attempt == 1


async def test_commands_of_one_call_succeed_or_fail_each_on_its_own(service: Service) -> None:
    good, other = await service.create(), await service.create()
    await service.execute(other.id, CancelTask())
    work: list[tuple[TaskState, TaskCommand]] = [
        (good, StartTask(holder="h", worker="w")),
        (other, StartTask(holder="h", worker="w")),
    ]
    answers = await service.commands.execute_each(work)
    assert isinstance(answers[0], Applied)
    assert isinstance(answers[1], WrongState)


async def test_a_decision_on_a_stale_state_is_made_again(service: Service) -> None:
    task = await service.create()
    running = (await service.execute(task.id, StartTask(holder="h", worker="w"))).state
    await service.execute(task.id, CancelTask(by="ops"))

    done = await service.commands.execute_on(running, CompleteTask(1, {"sum": 3}))

    assert done.state.status == "completed"
    assert await service.topics(task.id) == [
        "TaskCreated",
        "TaskStarted",
        "TaskCancelRequested",
        "TaskCompleted",
    ]


async def test_a_superseded_attempt_changes_nothing(service: Service) -> None:
    task = await service.create()
    first = (await service.execute(task.id, StartTask(holder="a", worker="w"))).state
    await service.execute(task.id, FailTask(attempt=1, cause="lost"))
    await service.execute(task.id, StartTask(holder="b", worker="w"))

    with pytest.raises(AttemptSuperseded):
        await service.commands.execute_on(first, CompleteTask(1, {"sum": 3}))
    assert (await service.state(task.id)).attempt == 2


async def test_an_idempotency_key_makes_one_task_of_twenty_requests(service: Service) -> None:
    key = IdempotencyKey("default", "create", "k", b"body")
    command = CreateTask(kind="sum", payload={"x": 1})
    answers = await asyncio.gather(*(service.commands.create([command], Origin(), key) for _ in range(20)))
    assert len({a.tasks[0].id for a in answers}) == 1
    assert sum(not a.replayed for a in answers) == 1
    assert len({a.tasks[0].position for a in answers}) == 1
    assert await service.log.head() == 1
    with pytest.raises(IdempotencyKeyReused):
        await service.commands.create(
            [command], Origin(), IdempotencyKey("default", "create", "k", b"other")
        )


async def test_an_unknown_task_is_not_found(service: Service) -> None:
    with pytest.raises(TaskNotFound):
        await service.execute(new_task_id(), CancelTask())


async def test_pausing_twice_is_pausing_once(service: Service) -> None:
    first = await service.commands.set_paused("mail", paused=True)
    again = await service.commands.set_paused("mail", paused=True)
    tasks, paused = await service.commands.load_with_paused([], [("default", "mail"), ("default", "x")])

    assert (first, again, tasks, paused) == (1, 1, {}, {("default", "mail")})
    assert await service.commands.set_paused("mail", paused=False) == 2
