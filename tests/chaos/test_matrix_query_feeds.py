"""The live feed against clients that die, stall or are many, and processes that stop."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from command_side.commands import CompleteTask, CreateTask, StartTask
from command_side.service import Origin
from events.errors import StoreUnavailable
from taskledger import protocol
from taskledger.protocol import HttpConnection
from tests.chaos.cluster import Cluster
from tests.chaos.wire import Wire, get, peak_mib, wires
from tests.integration.projection import many_histories, project
from tests.integration.streaming import Feeds, Refused, feeds
from tests.support import Service, eventually

STREAM = {"accept": "text/event-stream"}
QUERY_ALONE = {"query-api": 1}
GRACEFUL_SECONDS = 30.0
"""A machine under load may need it; the exit code tells whether the process had to be cut off."""


async def test_query_stream_that_nobody_reads_is_dropped_and_others_go_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of a stream reads nothing, while events of half a megabyte come -> the process holds two
    pieces of them for it, cuts it off at the deadline for unread answers, and serves the others."""
    monkeypatch.setattr(protocol, "READ_SECONDS", 1.0)
    stalled: list[HttpConnection] = []
    held: list[int] = []
    pause = HttpConnection.pause_writing

    def pause_writing(self: HttpConnection) -> None:
        stalled.append(self)
        held.append(self.transport.get_write_buffer_size())
        pause(self)

    monkeypatch.setattr(HttpConnection, "pause_writing", pause_writing)
    async with feeds(service.dsn) as api, wires(api.url, 1) as (idle,), api.stream() as stream:
        idle.send(get("/events", **STREAM))
        await eventually(lambda: _count(api, 2))
        idle.pause_reading()
        for count in range(1, 41):
            await service.create(payload={"text": "x" * 500_000})
            await stream.until(count)
        await eventually(lambda: _count(api, 1), "the one that reads nothing to be gone")
        assert stalled
        assert max(held) < 4 * 64 * 1024
        await service.create()
        await stream.until(41)


async def _count(api: Feeds, wanted: int) -> bool:
    return await api.open_streams() == wanted


async def test_query_told_to_stop_ends_its_streams(
    service: Service, redis_url: str, tmp_path: Path
) -> None:
    """SIGTERM, with streams open -> each ends in order, also of a task; one whose client reads nothing is
    cut off; the process exits with 0 and in time."""
    task = await service.create(payload={"text": "x" * 500_000})
    for _ in range(20):
        await service.create(payload={"text": "x" * 500_000})
    project(service.dsn)
    with Cluster(tmp_path, dsn=service.dsn, redis_url=redis_url, copies=QUERY_ALONE) as cluster:
        (url,) = cluster.query_urls
        async with (
            wires(url, 1) as (idle,),
            Feeds(url) as api,
            api.stream() as stream,
            api.stream(f"/tasks/{task.id}/events", after="now") as one,
        ):
            await stream.until(21)
            idle.pause_reading()
            idle.send(get("/events", **STREAM))
            await eventually(lambda: _count(api, 3))
            cluster.hold("query-api-0")
            code = await asyncio.to_thread(cluster.terminate, "query-api-0", GRACEFUL_SECONDS)
            await stream.end()
            await one.end()
        assert code == 0
        said = cluster.said("query-api-0")
        assert "Traceback" not in said
        assert "graceful shutdown exceeded" not in said


NOTHING = -1
"""Wanted by a client that never reads."""


class Counter:
    """A client that takes no memory: it counts events."""

    def __init__(self, wire: Wire, wanted: int) -> None:
        self.wanted = wanted
        self.events = 0
        self.begun = False
        """It has its first position, so that nothing from here on may be missing."""
        self.task = asyncio.create_task(self._read(wire))

    async def _read(self, wire: Wire) -> None:
        rest = b""
        while data := await wire.reader.read(65_536):
            self.begun = self.begun or b"\nid: " in rest + data
            self.events += (rest + data).count(_MARK)
            rest = (rest + data)[1 - len(_MARK) :]


_MARK = b"\ndata: "


@asynccontextmanager
async def counters() -> AsyncGenerator[list[Counter]]:
    clients: list[Counter] = []
    try:
        yield clients
    finally:
        for client in clients:
            client.task.cancel()
        await asyncio.gather(*(client.task for client in clients), return_exceptions=True)


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_query_a_thousand_streams_fit_into_300_megabytes(
    service: Service, redis_url: str, tmp_path: Path
) -> None:
    """1,000 streams on one process, of everything, filtered, from the beginning, of single tasks, 50 of
    them never read -> each that reads gets all that it wants, and the process stays below 300 MB."""
    before = (await create(service, 60, text="x" * 100_000))[0]
    project(service.dsn)
    asked = (
        [("/events?after=now", 300)] * 790
        + [("/events?after=now&kind=even", 150)] * 50
        + [("/events?after=now&tag=t0", 100)] * 50
        + [("/events", 360)] * 10
        + [(f"/tasks/{before}/events", 1)] * 50
        + [("/events", NOTHING)] * 50
    )
    with Cluster(tmp_path, dsn=service.dsn, redis_url=redis_url, copies=QUERY_ALONE) as cluster:
        (url,) = cluster.query_urls
        pid = cluster.pid("query-api-0")
        assert pid is not None
        at_rest = peak_mib(pid)
        async with Feeds(url) as api, wires(url, len(asked)) as opened, counters() as clients:
            for number, ((path, wanted), each) in enumerate(zip(asked, opened, strict=True), start=1):
                if wanted == NOTHING:
                    each.pause_reading()
                else:
                    clients.append(Counter(each, wanted))
                each.send(get(path, **STREAM))
                if number % 100 == 0:
                    await eventually(partial(_count, api, number), f"{number} streams", within=120)

            async def all_begun() -> bool:
                return all(client.begun for client in clients)

            await eventually(all_begun, "all streams to have begun", within=300)
            for number in range(30):
                for kind in ("even", "odd"):
                    await create(service, 5, kind=kind, tags=(f"t{number % 3}",), text="y" * 200)

            async def all_there() -> bool:
                behind = [client for client in clients if client.events < client.wanted]
                assert not behind, f"{len(behind)}, the last at {min(c.events for c in behind)}"
                return True

            await eventually(all_there, "all events at all clients", within=600)
            assert {client.events - client.wanted for client in clients} == {0}
            assert await api.open_streams() >= 950
            peak = peak_mib(pid)
            print(f"1,000 streams: {peak:.0f} MiB at most, {at_rest:.0f} MiB before them")
            assert peak < 300


async def create(service: Service, count: int, *, text: str, **options: Any) -> Sequence[Any]:
    command = CreateTask(kind=options.pop("kind", "sum"), payload={"text": text}, **options)
    applied = await service.commands.create([command] * count, Origin())
    return [task.id for task in applied.tasks]


class Follower:
    """One client, with whichever process answers; `received` is what it has seen, once and in order."""

    def __init__(self, urls: Sequence[str], choice: random.Random, filters: dict[str, Any]) -> None:
        self.filters = filters
        self.received: list[dict[str, Any]] = []
        self.resumed = 0
        self._urls = urls
        self._choice = choice
        self._last_id: str | None = None

    async def run(self, times: int) -> None:
        """Dies as many times, and comes back."""
        while self.resumed < times:
            await self._once(dies_after=int(self._choice.expovariate(1 / 4_000)))

    async def read_on(self, wanted: int) -> None:
        while len(self.received) < wanted:
            await self._once(dies_after=10**9, wanted=wanted)

    async def _once(self, *, dies_after: int, wanted: int | None = None) -> None:
        async with Feeds(self._choice.choice(self._urls)) as api:
            try:
                async with api.stream(
                    last_id=self._last_id, dies_after=dies_after, **self.filters
                ) as stream:
                    try:
                        if wanted is None:
                            await stream.live(self._choice.expovariate(2))
                        else:
                            await stream.until(wanted - len(self.received), within=120)
                    finally:
                        self.received += [event.data for event in stream.events]
                        self._last_id = stream.parser.last_id
                        self.resumed += 1
            except (httpx.TransportError, Refused) as error:
                if isinstance(error, Refused) and error.args[0] != 503:
                    raise
                await asyncio.sleep(0.1)  # as long as Retry-After would be, only shorter


@pytest.fixture
async def load(service: Service) -> AsyncIterator[None]:
    """Tasks of all sorts, without an end."""
    stop = asyncio.Event()

    async def run() -> None:
        seed = 0
        while not stop.is_set():
            await many_histories(service, 10, seed=seed)
            batch = await create(service, 50, text="z" * 300, kind="k1", tags=("t1", "t2"))
            for task_id in batch[:10]:
                await service.execute(task_id, StartTask(holder="h", worker="w"))
                await service.execute(task_id, CompleteTask(1, {"n": 1}))
            seed += 1

    loading = asyncio.create_task(run())
    yield
    stop.set()
    with suppress(StoreUnavailable):  # of a machine that is busy with this test
        await loading


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_query_stream_clients_killed_fifty_times_miss_and_repeat_nothing(
    service: Service, load: None, redis_url: str, tmp_path: Path
) -> None:
    """Clients of streams, with and without filters, hang up at any byte and any time, 50 times each, and
    resume at either of two processes, which are killed as well -> each sees every wanted event once."""
    project(service.dsn)
    choice = random.Random(11)
    wanted: list[dict[str, Any]] = [
        {},
        {"kind": "k1"},
        {"tag": ["t1", "t2"]},
        {"queue": "q1", "type": ["TaskStarted", "TaskCompleted", "QueuePaused"]},
    ]
    with Cluster(tmp_path, dsn=service.dsn, redis_url=redis_url, copies={"query-api": 2}) as cluster:
        followers = [Follower(cluster.query_urls, choice, filters) for filters in wanted]
        following = asyncio.gather(*(follower.run(50) for follower in followers))
        for kill in range(4):
            await eventually(partial(_resumed, followers, 40 * (kill + 1)), within=120)
            await asyncio.to_thread(cluster.kill, choice.choice(cluster.names))
        await following
        for follower in followers:
            everything = await log_of(service, follower.filters)
            await follower.read_on(len(everything))
            seen = [(event["position"].partition(".")[0], event["type"]) for event in follower.received]
            assert seen[: len(everything)] == everything
            assert [int(at) for at, _ in seen] == sorted({int(at) for at, _ in seen})
            assert follower.resumed >= 50
        assert sum(cluster.restarts.values()) == 4


async def _resumed(followers: Sequence[Follower], times: int) -> bool:
    return sum(follower.resumed for follower in followers) >= times


async def log_of(service: Service, filters: dict[str, Any]) -> list[tuple[str, str]]:
    """What a filter wants of the log as it is now, told by the log itself."""
    found: list[tuple[str, str]] = []
    tags: dict[Any, set[str]] = {}
    at = 0
    asked = filters.get("tag", [])
    while events := await service.log.read_after(at, limit=1000):
        at = events[-1].id
        for event in events:
            if event.topic == "TaskCreated":
                tags[event.originator_id] = set(service.commands.fold([event]).tags)
            if (
                filters.get("kind", event.kind) == event.kind
                and filters.get("queue", event.queue) == event.queue
                and event.topic in filters.get("type", [event.topic])
                and set(asked) <= tags.get(event.originator_id, set())
            ):
                found.append((str(event.id), event.topic))
    return found
