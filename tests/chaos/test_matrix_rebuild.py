"""The projector's rows of the fault matrix, continued: rebuilds that do not come to their end."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from projector.verify import inspect
from tests.chaos.cluster import Cluster
from tests.integration.projection import following, live_number, present, project
from tests.integration.query import query_api
from tests.support import Service

DEAF = "redis://127.0.0.1:9"
"""Nobody listens there: a rebuild needs no Redis."""


@pytest.mark.parametrize(
    ("point", "resumed"),
    [
        ("rebuild-mid-fold", "resuming generation 2: 0 of 30 events are folded"),
        ("rebuild-before-indexes", "resuming generation 2: 30 of 30 events are folded"),
        ("rebuild-before-swap", "resuming generation 2: 30 of 30 events are folded"),
        ("rebuild-mid-swap", "resuming generation 2: 30 of 30 events are folded"),
        ("rebuild-after-swap", None),
    ],
)
async def test_projector_rebuild_killed_leaves_reads_alone_and_the_next_one_resumes_it(
    service: Service, tmp_path: Path, point: str, resumed: str | None
) -> None:
    """SIGKILL of `rebuild`, in the switch as well -> readers see one generation or the other, whole; the
    next one goes on where it was, and going back is possible."""
    tasks = [await service.create() for _ in range(30)]
    project(service.dsn)
    with (
        following(service.dsn),
        Cluster(tmp_path, dsn=service.dsn, redis_url=DEAF, copies={}) as cluster,
    ):
        async with query_api(service.dsn) as api, reading(api, len(tasks)):
            cluster.failpoints.arm(point)
            killed = await asyncio.to_thread(cluster.run, "rebuild")
            assert (killed.returncode, cluster.failpoints.fired(point)) == (-signal.SIGKILL, True)
            again = await asyncio.to_thread(cluster.run, "rebuild")
            assert (again.returncode, again.stderr) == (0, "")
            said = again.stdout.splitlines()
            assert (said[0] if said[0].startswith("resuming") else None) == resumed
            assert [g.state for g in present(service.dsn) if g.state != "retired"] == ["live"]
            back = await asyncio.to_thread(cluster.run, "rebuild", "--rollback")
            assert back.stdout == f"generation {live_number(service.dsn)} is live again\n"
            pruned = await asyncio.to_thread(cluster.run, "rebuild", "--prune")
            assert (pruned.returncode, len(present(service.dsn))) == (0, 1)
    assert inspect(service.dsn).differences == []


@asynccontextmanager
async def reading(api: httpx.AsyncClient, tasks: int) -> AsyncGenerator[None]:
    """Somebody reads all the while, and always sees everything."""
    stop = asyncio.Event()

    async def read() -> None:
        while not stop.is_set():
            answer = await api.get("/stats")
            assert (answer.status_code, answer.json()["total"]) == (200, tasks)
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        try:
            yield
        finally:
            stop.set()
