"""The APIs under more than they can take: they refuse, and go on."""

import asyncio
import json
import resource
import selectors
import threading
import time
from collections import Counter
from collections.abc import Sequence
from statistics import median
from types import SimpleNamespace

import httpx
import psycopg
import pytest

from events.append import AppendCommand, Outcome
from events.errors import StoreUnavailable
from events.group_commit import GroupCommit
from events.memory_log import MemoryLog
from taskledger.postgres import WAITING_PER_CONNECTION
from taskledger.settings import PostgresSettings
from tests.chaos.apis import API, Launch, Load
from tests.chaos.wire import (
    MIB,
    Wire,
    get,
    head,
    marks,
    peak_mib,
    post,
    resident_mib,
    task,
    virtual_bytes,
    wire,
    wires,
)
from tests.contract.builders import command
from tests.integration.command_api import NO_REDIS, in_process, problem, settings_for
from tests.integration.projection import project
from tests.integration.query import query_api
from tests.support import Service, eventually

BUDGET_SECONDS = 5.0


async def test_api_pool_exhausted(service: Service) -> None:
    """Every connection of the pool is stuck, and more requests come than may wait -> the others are told at
    once to come again (503), liveness answers, and what waited is answered once the database goes on."""
    tasks = [await service.create() for _ in range(3)]
    settings = settings_for(service.dsn, NO_REDIS)
    settings = settings.model_copy(
        update={"postgres": PostgresSettings(dsn=settings.postgres.dsn, pool_size=1)}
    )
    async with in_process(settings) as client, await psycopg.AsyncConnection.connect(service.dsn) as admin:
        await client.get("/health/ready")
        await admin.execute("lock table taskledger.task_events in access exclusive mode")
        path = f"/tasks/{tasks[0].id}/cancel"
        since = time.monotonic()
        asked = [asyncio.create_task(client.post(path)) for _ in range(2 * WAITING_PER_CONNECTION)]
        refused = await _first(asked)
        problem(refused, 503, "store_unavailable")
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/health/live")).status_code == 200
        assert time.monotonic() - since < BUDGET_SECONDS - 0.5
        await admin.rollback()
        found = Counter(answer.status_code for answer in await asyncio.gather(*asked))
        assert found.keys() == {200, 503}
        assert found[200] >= WAITING_PER_CONNECTION - 1  # one place may be the watch's own
        assert (await client.post(f"/tasks/{tasks[2].id}/cancel")).status_code == 200


async def test_api_pool_exhausted_for_reads(service: Service) -> None:
    """The same of the query API -> the same, of reads."""
    await service.create()
    project(service.dsn)
    postgres = {"dsn": service.dsn, "pool_size": 1}
    async with (
        query_api(service.dsn, postgres=postgres) as client,
        await psycopg.AsyncConnection.connect(service.dsn) as admin,
    ):
        assert (await client.get("/tasks")).status_code == 200
        await admin.execute("lock table taskledger.projection_generations in access exclusive mode")
        since = time.monotonic()
        asked = [asyncio.create_task(client.get("/tasks")) for _ in range(2 * WAITING_PER_CONNECTION)]
        problem(await _first(asked), 503, "store_unavailable")
        assert (await client.get("/health/live")).status_code == 200
        assert time.monotonic() - since < BUDGET_SECONDS - 0.5
        await admin.rollback()
        answers = await asyncio.gather(*asked)
    found = Counter(answer.status_code for answer in answers)
    assert set(found) == {200, 503}
    assert found[200] >= WAITING_PER_CONNECTION
    assert {a.headers.get("retry-after") for a in answers if a.status_code == 503} == {"1"}


async def _first(asked: Sequence[asyncio.Task[httpx.Response]]) -> httpx.Response:
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    return done.pop().result()


class Clockwork(selectors.DefaultSelector):
    """A selector for a loop whose time is what it was asked to wait: a busy machine changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += max(0.0, timeout or 0.0)
        return super().select(0)


class SlowLog:
    """Stores 200 commands a second, whatever their number."""

    def __init__(self, clock: Clockwork) -> None:
        self._log = MemoryLog()
        self._clock = clock
        self.rate = 200

    async def append(self, commands: Sequence[AppendCommand], *, deadline: float) -> list[Outcome]:
        seconds = len(commands) / self.rate
        left = deadline - self._clock.now
        await asyncio.sleep(min(seconds, left))
        if seconds >= left:
            raise StoreUnavailable("the database did not answer in time")
        return await self._log.append(commands, deadline=deadline)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    clock = Clockwork()
    for module in ("events.group_commit", "events.deadline"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_api_overload_stores_as_much_as_ever(clock: Clockwork) -> None:
    """Ten times as many commands as the database can store, for several budgets -> it stores at its full
    pace, each in time, and the others are refused soon."""
    log, budget = SlowLog(clock), 0.5
    took: list[float] = []
    refused: list[float] = []

    async def one(commits: GroupCommit) -> None:
        since = clock.now
        try:
            await commits.append(command())
        except StoreUnavailable:
            refused.append(clock.now - since)
        else:
            took.append(clock.now - since)

    async def overload() -> None:
        commits = GroupCommit(log, budget_seconds=budget)
        callers: list[asyncio.Task[None]] = []
        while clock.now < 6 * budget:
            due = int(clock.now * log.rate * 10) - len(callers)
            callers += [asyncio.create_task(one(commits)) for _ in range(due)]
            await asyncio.sleep(0.01)
        await asyncio.gather(*callers)

    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        runner.run(overload())
    assert len(took) + len(refused) > 9 * 6 * budget * log.rate
    assert len(took) / clock.now > 0.8 * log.rate
    assert max(took) < 1.5 * budget
    assert median(refused) < budget / 10


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clockwork) -> None:
        super().__init__(clock)
        self._of_the_clock = clock

    def time(self) -> float:
        return self._of_the_clock.now


@pytest.mark.faults
async def test_api_overload_keeps_its_pace_and_its_size(launch: Launch, service: Service) -> None:
    """Ten times the clients that keep it busy -> at least 80 % of its best pace, nothing but 201, 429 and
    503 with a time to come again, and memory stays where it was."""
    cluster = launch()
    url, pid = cluster.command_urls[0], cluster.pid(API)
    assert pid is not None
    pace: dict[int, float] = {}
    for clients in (20, 200):
        load = Load(url, clients)
        await load.has_begun()
        before, since = len(load.answers), time.monotonic()
        size = resident_mib(pid)
        await asyncio.to_thread(_hold, 4.0)
        pace[clients] = (len(load.answers) - before) / (time.monotonic() - since)
        load.stop()
        await load.over()
        assert load.lost == []
        assert {answer.status for answer in load.answers} <= {201, 429, 503}
        assert {a.headers.get("retry-after") for a in load.answers if a.status != 201} <= {"1"}
        assert resident_mib(pid) < size + 64
    assert pace[200] > 0.8 * pace[20]


def _hold(seconds: float) -> None:
    threading.Event().wait(seconds)


@pytest.mark.faults
async def test_api_many_large_bodies_in_little_memory(launch: Launch, service: Service) -> None:
    """A thousand connections with a body of 1 MiB each, and 1 GiB of address space more than at rest ->
    201 for what fits and 429 or 503 for the rest; the process lives, and its memory comes back."""
    cluster = launch()
    url, pid = cluster.command_urls[0], cluster.pid(API)
    assert pid is not None
    body = json.dumps({"kind": "mark", "payload": {"mark": "x" * (MIB - 100)}}).encode()
    request = head(content_length=len(body)) + body
    async with wire(url) as first:
        assert (await first.ask(request)).status == 201
    before = resident_mib(pid)
    limit = virtual_bytes(pid) + 1024 * MIB
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))

    async def one() -> int:
        try:
            async with wire(url) as client:
                return (await client.ask(request)).status
        except (OSError, EOFError):
            return 0

    found = Counter(await asyncio.gather(*(one() for _ in range(1000))))
    assert cluster.exit_codes[API] == []
    assert set(found) <= {201, 429, 503}, found
    assert found[201] > 0, found
    assert len(await marks(service)) == found[201] + 1
    assert peak_mib(pid) < 512
    async with wire(url) as last:
        assert (await last.ask(get("/health/ready"))).status == 200

    async def back() -> bool:
        return resident_mib(pid) < before + 128

    await eventually(back, "memory to come back")


@pytest.mark.faults
async def test_api_two_thousand_silent_connections(launch: Launch) -> None:
    """2,000 sockets that say nothing, 100 that send headers byte by byte and 100 whose body stalls -> gone
    within 10 and 30 s; a client that behaves is served all the while, hardly slower."""
    cluster = launch()
    url, pid = cluster.command_urls[0], cluster.pid(API)
    assert pid is not None
    size = resident_mib(pid)
    async with wire(url) as healthy:
        calm = await _latencies(healthy, 3.0)
        async with wires(url, 2000) as silent, wires(url, 100) as slow, wires(url, 100) as stalled:
            since = time.monotonic()
            for connection in stalled:
                connection.send(head(content_length=1000) + b"{")
            measuring = asyncio.create_task(_latencies(healthy, 12.0))
            for byte in get("/health/live", x_filler="xxx")[:20]:
                for connection in slow:
                    connection.send(bytes([byte]))
                await asyncio.sleep(0.4)
            await asyncio.gather(*(connection.rest() for connection in silent + slow))
            assert time.monotonic() - since < 12
            busy = await measuring
            await asyncio.gather(*(connection.rest() for connection in stalled))
            assert 25 < time.monotonic() - since < 32
        assert (await healthy.ask(get("/health/live"))).status == 200
    assert busy < max(2 * calm, 0.1)
    assert resident_mib(pid) < size + 64


async def _latencies(client: Wire, seconds: float) -> float:
    """The 99th percentile of many requests, one after the other."""
    found: list[float] = []
    since = time.monotonic()
    number = 0
    while time.monotonic() - since < seconds:
        begun, number = time.monotonic(), number + 1
        assert (await client.ask(post(task(f"healthy-{number}")))).status == 201
        found.append(time.monotonic() - begun)
    return sorted(found)[len(found) * 99 // 100]
