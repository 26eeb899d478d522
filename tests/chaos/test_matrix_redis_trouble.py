"""Redis in the fault matrix, keeping its data: full, not fit, silent, or cutting connections."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from httpx import AsyncClient
from redis.asyncio import Redis

from command_side.commands import CancelTask
from command_side.dispatcher.status import DispatcherStatus
from events.errors import ConfigurationError
from events.task_state import TaskState
from taskledger.metrics import REGISTRY
from taskledger.redis import stream_key
from tests.chaos.inprocess import System, nothing_left
from tests.chaos.servers import Servers
from tests.integration.command_api import GREET, SUM, in_process, settings_for
from tests.support import Service, eventually

STREAM = stream_key("default", "echo", "normal")
STALL_SECONDS = 8.0
"""A socket timeout (5 s), a pause, and the work. A client that retried on its own would take a minute."""


@asynccontextmanager
async def full(broker: Redis) -> AsyncGenerator[None]:
    """Every command that needs memory is refused."""
    await broker.config_set("maxmemory", "1")
    try:
        yield
    finally:
        await broker.config_set("maxmemory", "0")


async def waits_for_redis(status: DispatcherStatus, why: str) -> None:
    async def waits() -> bool:
        return why in status.waiting_for.get("redis", "")

    await eventually(waits, f"a dispatcher that waits: {why}")


async def test_redis_full_delays_dispatch_while_workers_drain_it_and_the_api_accepts(
    system: System, broker: Redis
) -> None:
    """maxmemory under noeviction: XADD is refused -> the relay backs off and says so, the API accepts on,
    workers read and acknowledge on; when there is memory again, everything is dispatched."""
    gate = await system.create("wait_thread", {}, 8)
    await system.all(gate, "running")
    before = await system.echoes(20)
    await eventually(lambda: holds(broker, len(before)), "the entries before")
    status = system.dispatchers[0]
    async with full(broker):
        async with in_process(settings_for(system.dsn, system.redis_url)) as api:
            accepted = [await api.post("/tasks", json=SUM) for _ in range(10)]
        assert {answer.status_code for answer in accepted} == {201}
        await waits_for_redis(status, "OutOfMemory")
        assert not status.ready
        await eventually(lambda: lags(10), "the relay's lag")
        for task in gate:
            await system.service.execute(task.id, CancelTask())
        await system.completed_once(before)
        assert await nothing_left(broker, "default"), "read, acknowledged and deleted"
        assert (system.workers[0].worker.status()["ready"], status.refused) == (True, 0)
    ids = [UUID(answer.json()["id"]) for answer in accepted]

    async def drained() -> bool:
        states = await system.service.commands.load(ids)
        return {state.status for state in states.values()} == {"completed"} and status.ready

    await eventually(drained, "what was accepted meanwhile")


async def lags(events: int) -> bool:
    """The relay, and not the fold, behind the log's head."""
    relay = REGISTRY.get_sample_value("taskledger_lag_events", {"follower": "relay"})
    fold = REGISTRY.get_sample_value("taskledger_lag_events", {"follower": "outstanding"})
    return relay is not None and relay >= events and fold == 0


async def holds(broker: Redis, count: int) -> bool:
    return await broker.xlen(STREAM) == count


async def test_redis_full_and_every_worker_started_anew_is_still_drained(
    system: System, broker: Redis
) -> None:
    """Groups cannot be made without memory, and asking for one that exists is refused as well -> a worker
    that starts now joins those there are: a full Redis without its workers would never be emptied."""
    await system.completed_once(await system.echoes(1))
    assert await system.workers[0].stopped() == 0
    before = await system.echoes(20)
    await eventually(lambda: holds(broker, len(before)), "the entries before")
    async with full(broker):
        await system.worker(queues=("default", "new"))
        await system.completed_once(before)
    await system.completed_once(await system.echoes(3, queue="new"))


async def test_redis_full_and_the_api_started_anew_still_hands_out_what_there_is(
    system: System, broker: Redis
) -> None:
    """The same for external kinds, whose consumer is the command API -> it hands out what there is."""
    settings = settings_for(system.dsn, system.redis_url)
    claim = ("/queues/front/claim", {"worker": "w", "limit": 10})
    async with in_process(settings) as api:
        assert (await api.post("/tasks", json=GREET)).status_code == 201
        await eventually(lambda: claimed(api, *claim, 1), "the first task")
        assert (await api.post("/tasks", json=GREET)).status_code == 201
    stream = stream_key("front", "greet", "normal")

    async def published() -> bool:
        return await broker.xlen(stream) == 1

    await eventually(published, "the second task's entry")
    async with full(broker), in_process(settings) as api:
        assert await claimed(api, *claim, 1)


async def claimed(api: AsyncClient, path: str, body: object, count: int) -> bool:
    answer = await api.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return len(answer.json()["tasks"]) == count


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_redis_that_may_evict_is_refused_by_all_that_use_it(
    service: Service, redis: Redis, redis_url: str, policy: str
) -> None:
    """An evicting policy -> the worker does not start, with one line; the dispatcher publishes nothing and
    says why; both do once it is set right."""
    system = System(service, redis_url)
    await redis.config_set("maxmemory-policy", policy)
    try:
        worker = await system.worker(ready=False)
        with pytest.raises(ConfigurationError, match=f"maxmemory-policy {policy}.*noeviction"):
            await asyncio.wait_for(worker.task, 10)
        system.forget(worker)
        status = await system.dispatcher(ready=False)
        tasks = await system.echoes(3)
        await waits_for_redis(status, "noeviction")
        assert not await redis.exists(STREAM)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
    try:
        await system.worker()
        await system.completed_once(tasks)
    finally:
        await system.stop()


Away = Callable[[Servers], None]


def swallows_requests(valkey: Servers) -> None:
    valkey.redis_proxy.black_hole(to_client=False)


def swallows_replies(valkey: Servers) -> None:
    valkey.redis_proxy.black_hole(to_server=False)


def swallows_all(valkey: Servers) -> None:
    valkey.redis_proxy.black_hole()


def resets(valkey: Servers) -> None:
    valkey.redis_proxy.reset()


def frozen(valkey: Servers) -> None:
    valkey.suspend_valkey()


def back(valkey: Servers) -> None:
    valkey.redis_proxy.heal()
    valkey.resume_valkey()


@pytest.mark.faults  # until the clients notice by their socket timeout
@pytest.mark.parametrize("fault", [swallows_requests, swallows_replies, swallows_all, frozen])
async def test_redis_silent_stalls_nobody_for_long_and_doubles_nothing(
    system: System, valkey: Servers, broker: Redis, fault: Away
) -> None:
    """A black hole either way, or SIGSTOP -> whoever waits gives up after the socket timeout and says what
    is missing; what runs ends and is recorded; afterwards nothing is doubled and entries are settled."""
    await silent(system, valkey, broker, fault, notice_within=2 * STALL_SECONDS)


async def test_redis_resetting_every_connection_stalls_nobody_and_doubles_nothing(
    system: System, valkey: Servers, broker: Redis
) -> None:
    """RST on all connections and on new ones -> as for a silent Redis, noticed at once."""
    await silent(system, valkey, broker, resets, notice_within=6.0)


async def silent(
    system: System, valkey: Servers, broker: Redis, fault: Away, *, notice_within: float
) -> None:
    running = await system.create("sleep", {"seconds": 0.8}, 4)
    await system.all(running, "running")
    early = await system.echoes(30)
    await asyncio.to_thread(fault, valkey)
    meanwhile = await system.echoes(10)
    await system.completed_once(running)
    status, worker = system.dispatchers[0], system.workers[0].worker
    await folded(system, meanwhile[-1], within=notice_within)

    async def noticed() -> bool:
        return "redis" in status.waiting_for and not worker.status()["ready"]

    await eventually(noticed, "dispatcher and worker to notice", within=notice_within)
    await asyncio.to_thread(back, valkey)
    began = time.monotonic()
    tasks = [*early, *meanwhile, *await system.echoes(10)]
    await system.completed_once(tasks, within=2 * STALL_SECONDS)
    assert time.monotonic() - began < 2 * STALL_SECONDS
    await eventually(lambda: nothing_left(broker, "default"), "empty streams")
    entries = worker.status()["entries"]
    assert (entries["started"], status.replaced) == (len(running) + len(tasks), 0)


async def folded(system: System, task: TaskState, *, within: float = 15.0) -> None:
    """The dispatcher knows of the task's creation."""

    async def reached() -> bool:
        return system.dispatchers[0].checkpoint >= task.position

    await eventually(reached, "the fold", within=within)


@pytest.mark.parametrize("request_", [b"EVALSHA", b"XREADGROUP", b"XDEL", b"XAUTOCLAIM"])
async def test_redis_reply_swallowed_once_doubles_nothing(
    system: System, valkey: Servers, broker: Redis, request_: bytes
) -> None:
    """A command is carried out, its reply lost and the connection cut -> publishing again adds nothing,
    what was delivered or claimed is found in the pending list, and nothing is left over."""
    first = await system.echoes(5)
    await system.completed_once(first)
    valkey.redis_proxy.swallow_reply(when=request_)
    second = await system.echoes(20)

    async def swallowed() -> bool:
        return valkey.redis_proxy.swallowed == 1

    await eventually(swallowed, "a swallowed reply")
    await system.completed_once([*first, *second])
    await eventually(lambda: nothing_left(broker, "default"), "empty streams")
    assert system.dispatchers[0].published <= len(first) + len(second)


async def test_redis_cut_in_the_middle_of_replies_doubles_nothing(
    system: System, valkey: Servers, broker: Redis
) -> None:
    """Connections end after some bytes of an answer, again and again -> each task runs, and once."""
    tasks = await system.echoes(20)
    for count in (1, 7, 60, 300):
        valkey.redis_proxy.cut_after(count)
        tasks += await system.echoes(20)
        await folded(system, tasks[-1])
        valkey.redis_proxy.heal()
    await system.completed_once(tasks)
    await eventually(lambda: nothing_left(broker, "default"), "empty streams")


@pytest.mark.faults  # until the worker notices by its socket timeout
@pytest.mark.faults
async def test_redis_frozen_keeps_no_worker_from_stopping(system: System, valkey: Servers) -> None:
    """SIGTERM while Redis does not answer -> the worker hands back and leaves within its time."""
    running = await system.create("wait_async", {}, 2)
    await system.all(running, "running")
    await asyncio.to_thread(valkey.suspend_valkey)
    began = time.monotonic()
    assert await system.workers[0].stopped() == 0
    assert time.monotonic() - began < 10.0
    assert set(await system.statuses(running)) == {"queued"}
    assert [await system.losses(task) for task in running] == [[("handed_back", False)]] * 2
