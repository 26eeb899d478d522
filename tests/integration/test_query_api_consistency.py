"""Read your writes: every read at a position, from whichever process."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest

from command_side.commands import CancelTask, FailTask, StartTask
from events.position import PositionToken
from query_side.consistency import Consistency
from tests.integration.projection import ERROR, following, project
from tests.integration.query import query_api
from tests.support import Service

TASK = "/tasks/{id}"
READ_TABLES = ["/tasks", TASK, "/dead-letters", "/stats", "/queues", "/workers"]
LOG = ["/events", TASK + "/events"]


@pytest.fixture
async def api(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setattr(Consistency.__init__, "__kwdefaults__", {"budget_seconds": 0.3})
    async with query_api(dsn) as client:
        yield client


async def test_every_read_takes_a_position_and_tells_the_one_it_was_read_at(
    service: Service, api: httpx.AsyncClient
) -> None:
    task = await service.create()
    tag = await service.log.tag()
    project(service.dsn)
    ahead = (await service.execute(task.id, CancelTask())).state.position
    for path in READ_TABLES + LOG:
        address = path.format(id=task.id)
        answer = await api.get(address, params={"min_position": f"{task.position}.{tag}"})
        assert answer.status_code == 200, (path, answer.text)
        reached = ahead if path in LOG else task.position
        assert answer.headers["x-position"] == f"{reached}.{tag}", path
        late = await api.get(address, params={"min_position": f"{ahead}.{tag}"})
        assert late.status_code == (200 if path in LOG else 503), path
        for text, status, code in [
            (f"{ahead + 1}.{tag}", 503, "read_model_lagging"),
            ("1.another1", 409, "log_rewound"),
            ("1", 400, "malformed_position"),
        ]:
            refused = await api.get(address, params={"min_position": text})
            assert (refused.status_code, refused.json()["code"]) == (status, code), path
            assert (refused.headers.get("retry-after") == "1") == (status == 503)
    for path in LOG:
        stream = await api.get(
            path.format(id=task.id),
            params={"min_position": f"1.{tag}"},
            headers={"Accept": "text/event-stream"},
        )
        assert stream.status_code == 422


async def test_lists_and_counts_show_what_was_written(service: Service, dsn: str) -> None:
    """The read waits for the projector, woken by its notification."""
    async with query_api(dsn) as api:
        project(service.dsn)
        with following(service.dsn):
            tag = await service.log.tag()
            for count in range(1, 6):
                task = await service.create(queue=f"q{count}", max_attempts=1)
                at = {"min_position": f"{task.position}.{tag}"}
                assert (await api.get("/tasks", params=at)).json()["tasks"][0]["id"] == str(task.id)
                assert (await api.get("/stats", params=at)).json()["total"] == count
                queues = (await api.get("/queues", params=at)).json()["queues"]
                assert f"q{count}" in [queue["queue"] for queue in queues]
                await service.execute(task.id, StartTask(holder="h", worker="w"))
                dead = await service.execute(task.id, FailTask(attempt=1, cause="error", error=ERROR))
                at = {"min_position": f"{dead.state.position}.{tag}"}
                letters = (await api.get("/dead-letters", params=at)).json()["tasks"]
                assert letters[0]["id"] == str(task.id)


async def test_no_session_reads_anything_stale_or_goes_back(service: Service, dsn: str) -> None:
    """Each reads what it wrote, and goes on from the position of its last answer, at either process."""
    project(service.dsn)
    async with query_api(dsn) as one, query_api(dsn) as two:
        with following(service.dsn):
            sessions = [Session(service, (one, two), seed) for seed in range(6)]
            await asyncio.gather(*(session.run(15) for session in sessions))
    assert sum(session.pairs for session in sessions) == 90


class Session:
    """Writes and reads in turn; `refused` counts the explicit 503."""

    def __init__(self, service: Service, apis: Sequence[httpx.AsyncClient], seed: int) -> None:
        self.pairs = self.refused = 0
        self._service = service
        self._apis = apis
        self._choice = random.Random(seed)
        self._highest = PositionToken(0, "")

    async def run(self, pairs: int) -> None:
        tag = await self._service.log.tag()
        while self.pairs < pairs:
            task = await self._service.create()
            await self._read(f"/tasks/{task.id}", PositionToken(task.position, tag))
            await self._read(self._choice.choice(["/tasks", "/stats", "/queues"]), self._highest)
            self.pairs += 1

    async def _read(self, path: str, at: PositionToken) -> None:
        answer = await self._choice.choice(self._apis).get(
            path, params={"min_position": str(at), **({"limit": 1} if path == "/tasks" else {})}
        )
        if answer.status_code == 503:
            assert answer.json()["code"] == "read_model_lagging"
            self.refused += 1
            return
        assert answer.status_code == 200, answer.text
        reached = PositionToken.parse(answer.headers["x-position"])
        assert reached.position >= at.position
        if at.position >= self._highest.position:
            self._highest = reached
