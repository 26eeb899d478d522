"""The query API and the projector as processes: they start without a database and end in order."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from projector.verify import inspect
from tests.chaos.ports import Ports
from tests.integration.projection import present, project
from tests.support import Service, eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
def port() -> Iterator[int]:
    ports = Ports()
    yield ports.take()
    ports.release()


@asynccontextmanager
async def _process(command: str, dsn: str, **settings: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    environment = {**os.environ, "TASKLEDGER__POSTGRES__DSN": dsn, **settings}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "taskledger", command),
        cwd=ROOT,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(process.communicate(), 15)
    return process.returncode, errors.decode()


async def test_a_long_poll_is_answered_when_the_process_is_told_to_stop(
    service: Service, port: int
) -> None:
    task = await service.create()
    project(service.dsn)
    async with (
        _process("query-api", service.dsn, TASKLEDGER__QUERY_API__PORT=str(port)) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):

        async def ready() -> bool:
            try:
                return (await client.get("/health/ready")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(ready)
        waiting = asyncio.create_task(client.get(f"/tasks/{task.id}", params={"wait_seconds": 60}))
        head = await client.head("/docs")
        assert "server" not in head.headers

        async with _process("query-api", service.dsn, TASKLEDGER__QUERY_API__PORT=str(port)) as second:
            _, errors = await asyncio.wait_for(second.communicate(), 15)
            assert second.returncode == 2
            assert "TASKLEDGER__QUERY_API__PORT" in errors.decode()
            assert errors.decode().count("\n") == 1

        code, errors_ = await _ended(process)
        response = await waiting
    assert (code, response.status_code, response.json()["status"]) == (0, 200, "queued")
    assert "Traceback" not in errors_


async def test_a_killed_projector_refolds_exactly(service: Service) -> None:
    for _ in range(30):
        await service.create()
    async with _process("projector", service.dsn) as process:

        async def has_begun() -> bool:
            return bool(present(service.dsn))

        await eventually(has_begun)
        process.kill()
        await process.wait()
    late = await service.create()
    async with _process("projector", service.dsn) as process:

        async def caught_up() -> bool:
            return present(service.dsn)[0].checkpoint == late.position

        await eventually(caught_up)
        code, errors = await _ended(process)
    assert code == 0
    assert "Traceback" not in errors
    assert inspect(service.dsn).differences == []
