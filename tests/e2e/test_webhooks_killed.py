"""The process that delivers webhooks, killed while it does: all events arrive, and repeats have one id."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from command_side.webhooks.webhook import CreateWebhook
from tests.e2e.running import Running
from tests.integration.webhooks import MASTER, OK, Hooks, Received, Reply, position_of, receiver, reply
from tests.support import Service, eventually

pytestmark = pytest.mark.timeout(120)

TASKS = 300
KILLED_AT = (40, 120, 200)
"""The requests that are not answered, as their sender is killed."""


class _Process(Running):
    def __init__(self, dsn: str, folder: Path) -> None:
        env = {
            "TASKLEDGER__POSTGRES__DSN": dsn,
            "TASKLEDGER__WEBHOOKS__SECRET": MASTER,
            "TASKLEDGER__WEBHOOKS__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
            "TASKLEDGER__WEBHOOKS__RETRY_BASE_SECONDS": "0.05",
            "TASKLEDGER__WEBHOOKS__RETRY_CAP_SECONDS": "0.5",
        }
        super().__init__("webhooks", folder=folder, env=env)


async def test_every_event_arrives_though_it_is_killed_again_and_again(
    service: Service, tmp_path: Path
) -> None:
    hooks = Hooks.over(service)
    processes: list[_Process] = []
    killed = asyncio.Event()

    def behave(_: Received) -> Reply:
        count = len(there.received)
        if count in KILLED_AT:
            os.kill(processes[-1].pid, signal.SIGKILL)
            killed.set()
            return None
        return reply(500) if count % 7 == 0 else OK

    async def keep_running() -> None:
        while True:
            processes.append(_Process(service.dsn, tmp_path))
            await killed.wait()
            killed.clear()
            await asyncio.to_thread(processes[-1].wait, 10)

    async with receiver(behave) as there:
        await hooks.webhooks.create(CreateWebhook(url=there.url, types=("TaskCompleted",)))
        running = asyncio.create_task(keep_running())
        try:
            tasks = [task for _ in range(TASKS // 20) for task in await hooks.many(20)]
            await eventually(lambda: _delivered(hooks), "all to be delivered", within=90)
        finally:
            running.cancel()
            for process in processes:
                process.kill()
                process.wait(10)
    assert len(processes) == len(KILLED_AT) + 1
    assert {position_of(i) for i in there.ids} == {task.position for task in tasks}
    assert len(set(there.ids)) == TASKS
    repeated = len(there.ids) - TASKS
    assert repeated >= len(KILLED_AT)
    bodies: dict[str, bytes] = {}
    for request in there.received:
        assert bodies.setdefault(request.id, request.body) == request.body


async def _delivered(hooks: Hooks) -> bool:
    return await hooks.statuses() == ["delivered"] * TASKS
