"""The example workers in other languages, against a real server: they see their tasks through."""

import asyncio
import os
import shutil
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from redis.asyncio import Redis

from command_side.api.app import create_app
from events.task_state import TaskState
from taskledger.settings import ExternalKind
from tests.integration.command_api import Tasks, on_port, settings_for
from tests.support import Service, eventually

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMANDS = {
    "shell": (["sh", str(EXAMPLES / "worker.sh")], ("sh", "curl", "sed")),
    "javascript": (["node", str(EXAMPLES / "worker.mjs")], ("node",)),
}
Run = Callable[[int], Awaitable[Process]]


@pytest.fixture
async def tasks(dsn: str, redis_url: str, service: Service, redis: Redis) -> AsyncIterator[Tasks]:
    kinds = {"greet": ExternalKind(queue="external")}
    async with (
        on_port(create_app(settings_for(dsn, redis_url, external_kinds=kinds))) as address,
        httpx.AsyncClient(base_url=f"http://{address}", timeout=30) as client,
    ):
        yield Tasks(client, service, redis)


@pytest.fixture(params=COMMANDS)
async def run(request: pytest.FixtureRequest, tasks: Tasks) -> AsyncIterator[Run]:
    """Starts the worker for a number of tasks, 0: until it is stopped."""
    command, needed = COMMANDS[request.param]
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        pytest.skip(f"this machine has no {missing[0]}")
    started: list[Process] = []

    async def start(max_tasks: int) -> Process:
        environment = {
            **os.environ,
            "TASKLEDGER_URL": str(tasks.client.base_url).rstrip("/"),
            "MAX_TASKS": str(max_tasks),
            "LEASE_SECONDS": "3",
        }
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=PIPE, stderr=PIPE, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: nobody else is in it
            await process.communicate()


async def settled(tasks: Tasks, task_id: str, status: str) -> TaskState:
    async def reached() -> bool:
        return (await tasks.state(task_id)).status == status

    await eventually(reached, f"the task to be {status}", within=30)
    return await tasks.state(task_id)


async def published(tasks: Tasks, payload: object, **fields: object) -> str:
    task_id = await tasks.create({"kind": "greet", "payload": payload, **fields})
    await tasks.publish(task_id)
    return task_id


async def test_tasks_are_completed(tasks: Tasks, run: Run) -> None:
    names = ["Ada", 'Grace "Amazing" \\ Hopper\n', "Zoë 💡"]
    ids = [await published(tasks, {"name": name}) for name in names]
    worker = await run(len(ids))
    output, errors = await asyncio.wait_for(worker.communicate(), 40)

    states = [await tasks.state(task_id) for task_id in ids]
    assert [state.status for state in states] == ["completed"] * 3, errors
    assert [state.result for state in states] == [{"greeting": f"Hello, {name}!"} for name in names]
    assert {state.attempt for state in states} == {1}
    assert all(task_id in output.decode() for task_id in ids)
    assert worker.returncode == 0


async def test_a_failure_is_reported_and_the_worker_goes_on(tasks: Tasks, run: Run) -> None:
    bad = await published(tasks, {"nobody": 1}, max_attempts=1)
    good = await published(tasks, {"name": "Ada"})
    await run(0)

    failed = await settled(tasks, bad, "dead")
    assert failed.error is not None
    assert failed.error.message == "nobody to greet"
    await settled(tasks, good, "completed")


async def test_a_worker_waits_for_work_and_stops_when_told(tasks: Tasks, run: Run) -> None:
    worker = await run(0)

    async def waiting() -> bool:
        return int((await tasks.redis.info("clients"))["blocked_clients"]) > 0

    await eventually(waiting, "the worker to claim")
    task_id = await published(tasks, {"name": "Ada"})
    done = await settled(tasks, task_id, "completed")
    assert done.id == UUID(task_id)
    os.killpg(worker.pid, signal.SIGTERM)
    # A signal between a shell's fork and curl's start is heard once that claim is over, after 20 s.
    await asyncio.wait_for(worker.communicate(), 35)
    assert worker.returncode == 0
