"""The projector's rows of the fault matrix, continued: rebuilds killed again and again."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.history import fill
from command_side.commands import CompleteTask, StartTask
from events.errors import Unavailable
from events.position import PositionToken
from projector.rebuild import rebuild
from projector.verify import inspect
from tests.chaos.rebuilding import Audience, Rebuild, blocked, folded, held_back
from tests.integration.projection import following, live_number, present, table
from tests.integration.query import query_api
from tests.support import Service, wait_until

TASKS = 10_000
RANGES = 15
RANGE_EVENTS = 3 * TASKS // RANGES


async def test_projector_rebuild_killed_twice_under_load_is_resumed_and_nobody_notices(
    service: Service, tmp_path: Path
) -> None:
    """SIGKILL of `rebuild` in its middle, twice, under load -> no read fails, mixes generations or shows
    older state; what was folded is not folded again; going back works."""
    await asyncio.to_thread(fill, service.dsn, TASKS)
    await asyncio.to_thread(rebuild, service.dsn, processes=1)
    ids = [str(row["id"]) for row in table(service.dsn)[::100]]
    async with AsyncExitStack() as stack:
        stack.enter_context(following(service.dsn))
        clients = [await stack.enter_async_context(query_api(service.dsn)) for _ in range(2)]
        audience = Audience(clients, ids)
        await stack.enter_async_context(working(service, audience))
        await stack.enter_async_context(audience.reading(2))

        first = await asyncio.to_thread(_killed_after, service.dsn, tmp_path, 5)
        second = await asyncio.to_thread(_killed_after, service.dsn, tmp_path, 5)
        with Rebuild(service.dsn, tmp_path, range_events=RANGE_EVENTS) as last:
            said = await asyncio.to_thread(last.finished, 50)
        assert live_number(service.dsn) == 2
        with Rebuild(service.dsn, tmp_path, "--rollback") as back:
            await asyncio.to_thread(back.finished, 30)
        assert live_number(service.dsn) == 1
    assert audience.failures == []
    assert len(audience.tasks) > 20
    assert audience.mixed(service.dsn) == []
    assert (0 < first < second < 3 * TASKS, last.resumed()) == (True, second)
    assert "were equal" in said
    assert [(g.number, g.state) for g in present(service.dsn)] == [(1, "live"), (2, "retired")]
    assert inspect(service.dsn).differences == []


def _killed_after(dsn: str, folder: Path, ranges: int) -> int:
    """How many events it leaves folded."""
    with Rebuild(dsn, folder, range_events=RANGE_EVENTS) as process, held_back(dsn, ranges):
        wait_until(lambda: blocked(dsn), "the rebuild to be in its middle")
        process.killed()
    return folded(dsn)


@asynccontextmanager
async def working(service: Service, audience: Audience) -> AsyncGenerator[None]:
    """Tasks come and are done all the while."""
    stop = asyncio.Event()
    tag = PositionToken.parse((await audience.clients[0].get("/stats")).json()["position"]).tag

    async def work() -> None:
        while not stop.is_set():
            try:
                task = await service.create()
                await service.execute(task.id, StartTask(holder="h", worker="w"))
                await service.execute(task.id, CompleteTask(1, {"sum": 3}))
            except Unavailable:
                continue  # the machine is too busy for that: there is load enough
            await audience.hear_of(str(task.id), str(PositionToken(task.position, tag)))

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        try:
            yield
        finally:
            stop.set()
