"""PostgreSQL goes away, falls silent or loses a reply, under the processes that depend on it."""

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.chaos.servers import Servers
from tests.chaos.store import APPEND, Client, Store, command_api
from tests.integration.command_api import SUM, problem
from tests.integration.projection import following
from tests.integration.query import query_api
from tests.support import eventually

pytestmark = pytest.mark.xdist_group("chaos-postgres")

BUDGET_SECONDS = 5.0
RECOVERED_SECONDS = 10.0
"""From the moment at which the server accepts again."""


async def test_postgres_connection_cut_at_commit(store: Store) -> None:
    """The append is stored, its reply is lost -> the client is told the truth, and no false 409."""
    proxy = store.servers.postgres_proxy
    async with command_api(store) as client:
        running, waiting = await client.started(), await client.created()
        commands: list[tuple[str, Any, int]] = [
            ("/tasks", SUM, 201),
            ("/tasks/batch", {"tasks": [SUM, SUM]}, 201),
            (f"/tasks/{running}/complete", {"attempt": 1, "result": None}, 200),
            (f"/tasks/{waiting}/cancel", {}, 200),
            ("/queues/default/pause", {}, 200),
        ]
        for number, (path, body, status) in enumerate(commands, start=1):
            proxy.swallow_reply(when=APPEND)
            answer = await client.post(path, body)
            assert (answer.status_code, proxy.swallowed) == (status, number), answer.text
    assert store.stored(running) == ["TaskCreated", "TaskStarted", "TaskCompleted"]
    assert store.stored(waiting) == ["TaskCreated", "TaskCancelled"]


async def test_postgres_reply_to_a_commit_lost_for_good(store: Store) -> None:
    """The append is stored and nothing is heard of the server any more -> 503 at the deadline; with its key
    the same task later."""
    proxy = store.servers.postgres_proxy
    async with command_api(store) as client:
        proxy.black_hole(to_server=False)
        begun = time.monotonic()
        problem(await client.submit("k"), 503, "store_unavailable")
        assert time.monotonic() - begun < 2 * BUDGET_SECONDS
        ((task,),) = store.sql("select originator_id from taskledger.task_events where notification_id = 3")
        proxy.heal()

        async def replayed() -> httpx.Response | None:
            answer = await client.submit("k")
            return answer if answer.status_code == 201 else None

        again = await eventually(replayed, "the first answer", within=RECOVERED_SECONDS)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json()["id"] == str(task)


@pytest.mark.parametrize("fault", ["backend killed", "immediate stop"])
async def test_postgres_crashes_under_load(store: Store, fault: str) -> None:
    """A backend is killed, or the server stopped at once -> writes 503, reads old or 503; within three
    seconds of its return all is as before, and nothing acknowledged is missing."""
    async with command_api(store) as client, query_api(store.dsn) as reads:
        with following(store.dsn):
            load = Load(client, reads)
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(load.submit())
                group.create_task(load.read())
                await eventually(load.grown_by(100), "a load")
                await asyncio.to_thread(crash, store.servers, fault)
                await eventually(load.grown_by(100), "the load's return", within=RECOVERED_SECONDS)
                load.over = True
            assert load.refused <= {"store_unavailable", "read_model_lagging", "not_ready"}
            stored = store.sql(
                "select originator_id from taskledger.task_events where topic = 'TaskCreated'"
            )
            assert {str(row[0]) for row in stored} >= set(load.acknowledged)
            await eventually(load.all_readable, "every task in the read table")


def crash(servers: Servers, fault: str) -> None:
    if fault == "backend killed":
        servers.kill_backend("taskledger-command-api")
    else:
        servers.crash_postgres()
        servers.start_postgres()


class Load:
    """Clients that repeat a submission until it is answered, and one that reads."""

    def __init__(self, client: Client, reads: httpx.AsyncClient) -> None:
        self._client = client
        self._reads = reads
        self.acknowledged: list[str] = []
        self.refused: set[str] = set()
        self.over = False

    async def submit(self) -> None:
        while not self.over:
            key = uuid4().hex
            while (answer := await self._client.submit(key)).status_code != 201:
                assert answer.status_code == 503, answer.text
                self.refused.add(answer.json()["code"])
                if self.over:
                    return
                await asyncio.sleep(0.01)
            self.acknowledged.append(answer.json()["id"])

    async def read(self) -> None:
        while not self.over:
            answer = await self._reads.get("/tasks?limit=1")
            assert answer.status_code in {200, 503}, answer.text
            if answer.status_code == 503:
                self.refused.add(answer.json()["code"])
            await asyncio.sleep(0.01)

    def grown_by(self, count: int) -> Callable[[], Any]:
        target = len(self.acknowledged) + count

        async def reached() -> bool:
            return len(self.acknowledged) >= target

        return reached

    async def all_readable(self) -> bool:
        answer = await self._reads.get(f"/tasks/{self.acknowledged[-1]}")
        return answer.status_code == 200


async def test_postgres_suspended(store: Store) -> None:
    """The server stands still -> writes fail within the budget however many wait, liveness answers; when
    it goes on, so do they."""
    async with command_api(store) as client:
        store.servers.suspend_postgres()
        begun = time.monotonic()
        writes = [asyncio.create_task(client.submit()) for _ in range(30)]
        assert await client.status_of("/health/live") == 200
        for answer in await asyncio.gather(*writes):
            problem(answer, 503, "store_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        assert time.monotonic() - begun < 2 * BUDGET_SECONDS
        store.servers.resume_postgres()
        await eventually(client.accepts, "writes", within=RECOVERED_SECONDS)


@pytest.mark.faults
async def test_postgres_in_a_black_hole(store: Store) -> None:
    """Nothing comes through any more, in either direction -> as when it is suspended."""
    async with command_api(store) as client:
        store.servers.postgres_proxy.black_hole()
        begun = time.monotonic()
        for answer in await asyncio.gather(*(client.submit() for _ in range(10))):
            problem(answer, 503, "store_unavailable")
        assert time.monotonic() - begun < 2 * BUDGET_SECONDS
        store.servers.postgres_proxy.heal()
        await eventually(client.accepts, "writes", within=RECOVERED_SECONDS)
