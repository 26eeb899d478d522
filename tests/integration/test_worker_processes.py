"""Workers as processes of their own: signals, kills, and what they leave behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from command_side.commands import CreateTask
from command_side.service import Origin
from events.task_state import TaskState
from tests.support import Service, eventually

Spawn = Callable[..., "subprocess.Popen[bytes]"]
HANDLERS = '["tests.integration.worker_handlers", "examples.handlers"]'


@pytest.fixture
def spawn(dsn: str, redis_url: str, tmp_path: Path) -> Iterator[Spawn]:
    processes: list[subprocess.Popen[bytes]] = []

    def spawn(**settings: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "TASKLEDGER__POSTGRES__DSN": dsn,
            "TASKLEDGER__REDIS__URL": redis_url,
            "TASKLEDGER__HANDLERS": HANDLERS,
            "TASKLEDGER__LEASE_SECONDS": "3",
            "TASKLEDGER__WORKER__DRAIN_SECONDS": "0.2",
            **{f"TASKLEDGER__{name.upper()}": value for name, value in settings.items()},
        }
        with (tmp_path / f"worker{len(processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "taskledger", "worker"], env=environment, stdout=log, stderr=log
            )
        processes.append(process)
        return process

    yield spawn
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def submit(service: Service, redis: Redis) -> Callable[..., Awaitable[TaskState]]:
    async def submit(kind: str, payload: Any = None, **options: Any) -> TaskState:
        command = CreateTask(kind=kind, payload={} if payload is None else payload, **options)
        task = (await service.commands.create([command], Origin())).tasks[0]
        await service.publish(redis, task)
        return task

    return submit


async def reaches(service: Service, task: TaskState, *statuses: str) -> TaskState:
    async def condition() -> TaskState | None:
        state = await service.state(task.id)
        return state if state.status in statuses else None

    state: TaskState = await eventually(condition, f"{task.kind} {statuses}", within=30)
    return state


async def exit_code(process: "subprocess.Popen[bytes]") -> int:
    return await asyncio.to_thread(process.wait, 30)


def text_of(file: Path) -> str:
    return file.read_text().strip()


async def pid_in(file: Path) -> int:
    async def condition() -> str:
        return text_of(file)

    return int(await eventually(condition, "the child's process id", within=30))


def gone(pid: int) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        # A zombie that nobody has reaped is gone as well.
        stat = text_of(Path(f"/proc/{pid}/stat"))
        return stat.rpartition(")")[2].split()[0] == "Z"

    return condition


Submit = Callable[..., Awaitable[TaskState]]


async def test_sigterm_drains_and_hands_back(
    spawn: Spawn, submit: Submit, service: Service, tmp_path: Path
) -> None:
    worker = spawn()
    file = tmp_path / "pid"
    task = await submit("wait_process", str(file))
    child = await pid_in(file)

    worker.send_signal(signal.SIGTERM)

    assert await exit_code(worker) == 0
    assert ((await service.state(task.id)).status, (await service.state(task.id)).cause) == (
        "queued",
        "handed_back",
    )
    await eventually(gone(child), "the child's end")


async def test_sigkill_takes_the_children_along(spawn: Spawn, submit: Submit, tmp_path: Path) -> None:
    worker = spawn()
    file = tmp_path / "pid"
    await submit("wait_process", str(file))
    child = await pid_in(file)
    worker.kill()
    await eventually(gone(child), "the child's end")


async def test_a_second_signal_ends_at_once(
    spawn: Spawn, submit: Submit, service: Service, tmp_path: Path
) -> None:
    worker = spawn(worker__drain_seconds="60")
    task = await submit("wait_async")
    await reaches(service, task, "running")
    worker.send_signal(signal.SIGINT)

    async def draining() -> bool:
        return "draining" in text_of(tmp_path / "worker0.log")

    await eventually(draining, "the drain")
    worker.send_signal(signal.SIGINT)
    assert await exit_code(worker) == 130
    assert (await service.state(task.id)).status == "running"


async def test_crash_kills_its_worker(spawn: Spawn, submit: Submit, service: Service) -> None:
    worker = spawn()
    task = await submit("crash")
    assert await exit_code(worker) == -signal.SIGKILL
    assert (await service.state(task.id)).status == "running"


async def test_a_handler_that_never_returns_does_not_keep_a_worn_out_worker(
    spawn: Spawn, submit: Submit, service: Service, tmp_path: Path
) -> None:
    worker = spawn(worker__concurrency="1")
    task = await submit("deaf_thread", str(tmp_path / "never"), timeout_seconds=0.2)
    assert await exit_code(worker) == 75
    assert (await service.state(task.id)).cause == "timeout"


async def test_a_blocked_event_loop_keeps_its_lease_for_a_while(
    spawn: Spawn, submit: Submit, service: Service
) -> None:
    spawn()
    task = await submit("block", 2.0)
    await reaches(service, task, "running")
    before = await counter(service)

    async def renewed() -> bool:
        return await counter(service) >= before + 2

    await eventually(renewed, "two renewals")
    assert (await service.state(task.id)).status == "running"
    await reaches(service, task, "completed")


async def counter(service: Service) -> int:
    async with service.pool.connection() as connection:
        cursor = await connection.execute("select counter from taskledger.leases where info is not null")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


async def test_goes_on_when_the_process_that_forks_is_killed(
    spawn: Spawn, submit: Submit, service: Service
) -> None:
    spawn()
    first = await submit("pid")
    zygote = (await reaches(service, first, "completed")).result[1]
    os.kill(zygote, signal.SIGKILL)
    await eventually(gone(zygote), "the zygote's end")
    second = await submit("pid")
    state = await reaches(service, second, "completed", "queued")
    # Killed in the moment of the fork, the attempt is lost and queued again, uncounted.
    assert state.failures == 0
    assert state.result is None or state.result[1] != zygote


async def test_two_processes_share_and_one_takes_over_what_the_other_left_pending(
    spawn: Spawn, submit: Submit, service: Service
) -> None:
    first, second = spawn(), spawn()
    tasks = [await submit("echo", n) for n in range(100)]
    for task in tasks:
        assert (await reaches(service, task, "completed")).attempt == 1
    first.kill()
    later = [await submit("echo", n) for n in range(20)]
    for task in later:
        await reaches(service, task, "completed")
    second.send_signal(signal.SIGTERM)
    assert await exit_code(second) == 0
