"""The query API's rows of the fault matrix: late answers and refusals, never an old one for a new."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from command_side.commands import CancelTask
from events.ids import new_task_id
from events.position import PositionToken
from projector.park import park
from projector.runner import Projector
from tests.chaos.cluster import Cluster
from tests.integration.projection import append_raw, execute, following, project
from tests.integration.query import query_api
from tests.support import Service, eventually, wait_until

BUDGET_SECONDS = 5.0
"""What a read waits for its position."""


@pytest.fixture
async def api(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    project(service.dsn)
    async with query_api(service.dsn) as client:
        yield client


async def token(service: Service, position: int) -> dict[str, str]:
    return {"min_position": str(PositionToken(position, await service.log.tag()))}


def lagging(answer: httpx.Response) -> bool:
    """503 in the form that tells a client to come back."""
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (503, "read_model_lagging"), problem
    assert int(answer.headers["Retry-After"]) >= 1
    return True


async def timed(answer: Any) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    return await answer, time.monotonic() - began


async def test_query_of_a_position_the_projector_has_not_reached_waits_then_refuses(
    service: Service, api: httpx.AsyncClient
) -> None:
    """No projector at work; a token ahead of it, or ahead of the log -> the read waits for its budget, then
    503 with Retry-After, also for what was never there; without a token the old state is shown at once."""
    task = await service.create()
    project(service.dsn)
    ahead = await token(service, (await service.execute(task.id, CancelTask())).state.position)
    beyond = await token(service, 10**6)
    unknown = new_task_id()
    plain = await api.get(f"/tasks/{task.id}")
    assert plain.json()["status"] == "queued"

    waits = [
        api.get(f"/tasks/{task.id}", params=ahead),
        api.get(f"/tasks/{task.id}", params={**ahead, "wait_seconds": 1}),
        api.get(f"/tasks/{task.id}", params=beyond),
        api.get(f"/tasks/{unknown}", params=ahead),
    ]
    for answer, seconds in await asyncio.gather(*map(timed, waits)):
        assert lagging(answer)
        assert BUDGET_SECONDS - 0.5 < seconds < 2 * BUDGET_SECONDS
    project(service.dsn)
    assert (await api.get(f"/tasks/{task.id}", params=ahead)).json()["status"] == "cancelled"
    assert (await api.get(f"/tasks/{unknown}", params=ahead)).status_code == 404


async def test_query_answers_as_soon_as_the_projector_is_there_again(
    service: Service, api: httpx.AsyncClient
) -> None:
    """The projector comes back while reads wait -> they are answered then, with what was asked for; a long
    poll ends with the state it waited for."""
    task = await service.create()
    project(service.dsn)
    ahead = await token(service, (await service.execute(task.id, CancelTask())).state.position)
    reads = [
        asyncio.create_task(api.get(f"/tasks/{task.id}", params=params))
        for params in (ahead, {"wait_seconds": "30"})
    ]
    await asyncio.sleep(0.3)
    assert not any(read.done() for read in reads)
    with following(service.dsn):
        answers = await asyncio.wait_for(asyncio.gather(*reads), 20)
    assert [answer.json()["status"] for answer in answers] == ["cancelled", "cancelled"]


async def test_query_long_poll_ends_in_time_while_the_projector_stands(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The projector stands at an event that it cannot apply -> long polls end at their time, reads go on,
    and readiness stays 200 but says how far behind the answers are."""
    monkeypatch.setattr("query_side.api.app._LAGGING_SECONDS", 0.2)
    task = await service.create()
    project(service.dsn)
    await append_raw(service, task.id, 2, "TaskTeleported", b"{}")
    later = await service.create()
    with following(service.dsn) as projector:
        wait_until(lambda: not projector.status().ready, "it stands")
        answer, seconds = await timed(api.get(f"/tasks/{task.id}", params={"wait_seconds": 0.5}))
        assert (answer.status_code, answer.json()["version"]) == (200, 1)
        assert 0.4 < seconds < BUDGET_SECONDS
        assert (await api.get(f"/tasks/{later.id}")).status_code == 404
        assert (await api.get("/stats")).json()["lag"] == 2

        ready = await api.get("/health/ready")
        assert ready.status_code == 200
        (told,) = ready.json()["degraded"]
        assert told.startswith("the read tables are 2 events and ")

        park(service.dsn, 2, reason="r", by="b")
        wait_until(lambda: projector.status().checkpoint == later.position, "it goes on")
        assert (await api.get("/health/ready")).json() == {"status": "ready", "degraded": []}


async def test_query_of_a_parked_task_shows_no_old_state_as_new(
    service: Service, api: httpx.AsyncClient
) -> None:
    """An event was parked -> its task is shown as it was to whoever asks for no position or an earlier one;
    a later position is refused at once; a task whose creation is parked is not said to be unknown."""
    task, unborn = await service.create(), await service.create()
    poison = await append_raw(service, task.id, 2, "TaskTeleported", b"{}")
    execute(
        service.dsn,
        "update taskledger.task_events set state = 'x' where notification_id = %s",
        unborn.position,
    )
    for position in (unborn.position, poison):
        with following(service.dsn) as projector:
            _await_halt(projector, position)
            park(service.dsn, position, reason="r", by="b")
    last = (await service.create()).position
    project(service.dsn)

    for params in ({}, await token(service, task.position), await token(service, poison - 1)):
        answer = await api.get(f"/tasks/{task.id}", params=params)
        assert (answer.status_code, answer.json()["version"]) == (200, 1)
    for position in (poison, last):
        answer, seconds = await timed(api.get(f"/tasks/{task.id}", params=await token(service, position)))
        assert lagging(answer)
        assert "parked" in answer.json()["detail"]
        assert seconds < BUDGET_SECONDS - 1
    for params in ({}, await token(service, last), {"wait_seconds": "1"}):
        assert lagging(await api.get(f"/tasks/{unborn.id}", params=params))
    assert (await api.get(f"/tasks/{new_task_id()}")).status_code == 404


def _await_halt(projector: Projector, position: int) -> None:
    wait_until(lambda: f"park {position} " in str(projector.status().waiting_for), "it stands there")


async def test_query_while_projectors_are_killed_never_shows_an_older_state(
    service: Service, redis_url: str, tmp_path: Path
) -> None:
    """Projectors are killed under reads at the writers' own positions, from two query processes -> each
    answer is at the position or beyond, or 503 with Retry-After; no reader goes back in time."""
    copies = {"query-api": 2, "projector": 2}
    choice = random.Random(3)
    with Cluster(tmp_path, dsn=service.dsn, redis_url=redis_url, copies=copies) as cluster:
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            readers = [Reader(service, client, cluster.query_urls) for _ in range(4)]
            reading = [asyncio.create_task(reader.run()) for reader in readers]
            for _ in range(6):
                await asyncio.to_thread(cluster.kill, choice.choice(["projector-0", "projector-1"]))
                await asyncio.sleep(choice.uniform(0.1, 0.4))

            async def enough() -> bool:
                return sum(reader.answered for reader in readers) > 100 or any(map(_done, reading))

            await eventually(enough, "a hundred reads", within=30)
            for reader in readers:
                reader.stop.set()
            await asyncio.gather(*reading)


def _done(task: asyncio.Task[None]) -> bool:
    return task.done()


class Reader:
    """Writes, and reads each time at the position that it was given for it, from every query process."""

    def __init__(self, service: Service, client: httpx.AsyncClient, urls: Sequence[str]) -> None:
        self.stop = asyncio.Event()
        self.answered = 0
        self._service = service
        self._client = client
        self._urls = urls
        self._highest = 0

    async def run(self) -> None:
        while not self.stop.is_set():
            task = await self._service.create()
            await self._read(task.id, 1, task.position)
            cancelled = await self._service.execute(task.id, CancelTask())
            await self._read(task.id, 2, cancelled.state.position)

    async def _read(self, task_id: UUID, version: int, position: int) -> None:
        for url in self._urls:
            at = await token(self._service, position)
            answer = await self._client.get(f"{url}/tasks/{task_id}", params=at)
            if answer.status_code != 200:
                assert lagging(answer)
                continue
            self.answered += 1
            assert answer.json()["version"] >= version
            reached = PositionToken.parse(answer.headers["X-Position"]).position
            assert reached >= max(position, self._highest)
            self._highest = reached
