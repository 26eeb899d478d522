"""The APIs in the fault matrix: killed, told to stop, frozen; what a client was told stays true."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from uuid import uuid4

import httpx
import pytest

from tests.chaos.apis import API, Launch, Load, stored
from tests.chaos.cluster import Cluster
from tests.chaos.proxy import Proxy
from tests.chaos.wire import Wire, get, head, marks, post, task, wire
from tests.support import Service, eventually

EDGE_SECONDS = 5.0
"""A request's budget."""
STRIKES = 8


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        yield client


async def test_api_killed_after_append_before_reply(launch: Launch, service: Service) -> None:
    """SIGKILL between the append and the answer -> the client sees the connection end; the same key again
    is answered with the task that was made."""
    cluster = launch()
    cluster.failpoints.arm("api-after-append-before-reply")
    async with wire(cluster.command_urls[0]) as first:
        with pytest.raises((ConnectionError, EOFError)):
            await first.ask(post(task("a"), idempotency_key="once"))
    assert cluster.failpoints.fired("api-after-append-before-reply")
    again, _ = await stored(cluster.command_urls[0], "a", "once")
    assert again.headers["idempotent-replayed"] == "true"
    assert await marks(service) == ["a"]
    assert cluster.exit_codes[API] == [-signal.SIGKILL]


async def test_api_told_to_stop_under_load(
    launch: Launch, client: httpx.AsyncClient, service: Service
) -> None:
    """SIGTERM -> not ready, but serving, until balancers have seen it; what is under way is finished, new
    connections are refused, no request that was sent goes unanswered, and the exit code is 0."""
    cluster = launch(HTTP__DRAIN_SECONDS=0.6)
    url = cluster.command_urls[0]
    cluster.hold(API)
    load = Load(url, 8)
    async with wire(url) as slow:
        body = json.dumps(task("slow")).encode()
        slow.send(head(content_length=len(body)) + body[:10])
        await load.has_begun()
        since = time.monotonic()
        ended = asyncio.create_task(asyncio.to_thread(cluster.terminate, API, 15))

        async def unready() -> bool:
            return (await client.get(f"{url}/health/ready")).status_code == 503

        await eventually(unready, "readiness to end", within=5)
        before = len(load.answers)
        assert (await client.get(f"{url}/health/live")).status_code == 200
        assert (await client.post(f"{url}/tasks", json=task("late"))).headers["connection"] == "close"
        await load.over()
        slow.send(body[10:])
        assert (await slow.answer()).status == 201
        assert await ended == 0
    assert time.monotonic() - since < 10
    assert load.lost == []
    assert load.refused == 8
    assert len(load.answers) > before
    assert {answer.status for answer in load.answers} == {201}
    assert len(await marks(service)) == len(load.answers) + 2
    assert '"level": "error"' not in cluster.said(API)


async def test_api_told_to_stop_resets_nobody(launch: Launch, service: Service) -> None:
    """SIGTERM while clients connect anew for each request -> each is refused or answered, also those whose
    connection still waited to be accepted."""
    cluster = launch(HTTP__DRAIN_SECONDS=0)
    cluster.hold(API)
    load = Load(cluster.command_urls[0], 40, keep=False)
    await load.has_begun()
    assert await asyncio.to_thread(cluster.terminate, API, 15) == 0
    await load.over()
    assert load.lost == []
    assert load.refused == 40
    assert len(await marks(service)) == len(load.answers)


@contextmanager
def frozen(cluster: Cluster, name: str = API) -> Generator[None]:
    cluster.suspend(name)
    try:
        yield
    finally:
        cluster.resume(name)


async def test_api_frozen_does_not_do_what_its_client_gave_up(launch: Launch, service: Service) -> None:
    """SIGSTOP, requests whose clients hang up, SIGCONT -> none of them is carried out; one whose client
    still waits within its time is."""
    cluster = launch()
    url = cluster.command_urls[0]
    async with wire(url) as kept, wire(url) as half:
        assert (await kept.ask(post(task("before")))).status == 201
        body = json.dumps(task("half")).encode()
        half.send(head(content_length=len(body)) + body[:10])
        await half.writer.drain()
        with frozen(cluster):
            patient = await Wire.open(url)
            patient.send(post(task("patient")))
            for n in range(5):
                hasty = await Wire.open(url)
                hasty.send(post(task(f"hasty-{n}")))
                await hasty.writer.drain()
                hasty.reset() if n % 2 else await hasty.close()
            kept.send(post(task("kept")))
            half.send(body[10:])
            await half.close()
            await kept.close()
        assert (await patient.answer()).status == 201
        await patient.close()
    async with wire(url) as later:
        assert (await later.ask(post(task("later")))).status == 201
    assert await marks(service) == ["before", "patient", "later"]


@pytest.mark.faults
async def test_api_frozen_refuses_what_waited_too_long(launch: Launch, service: Service) -> None:
    """SIGSTOP for longer than a request's budget, SIGCONT -> what lay in the socket, in the queue of new
    connections or half-read is refused (503), though its client still waits; what comes now is done."""
    cluster = launch()
    url = cluster.command_urls[0]
    async with wire(url) as kept, wire(url) as half:
        assert (await kept.ask(post(task("before")))).status == 201
        body = json.dumps(task("half")).encode()
        half.send(head(content_length=len(body)) + body[:10])
        await half.writer.drain()
        with frozen(cluster):
            new = await Wire.open(url)
            for connection in (kept, new):
                connection.send(post(task("expired")))
            half.send(body[10:])
            probe = await Wire.open(url)
            probe.send(get("/health/live"))
            await asyncio.to_thread(threading.Event().wait, EDGE_SECONDS + 0.3)
            fresh = await Wire.open(url)
            fresh.send(post(task("fresh")))
        for connection in (kept, new, half):
            refused = await connection.answer()
            assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "expired", "1")
        assert (await fresh.answer()).status == 201
        assert (await probe.answer()).status == 200
        assert (await kept.ask(post(task("again")))).status == 201
        for connection in (new, fresh, probe):
            await connection.close()
    assert await marks(service) == ["before", "fresh", "again"]


async def test_api_idempotency_keys_through_a_resetting_proxy(launch: Launch, service: Service) -> None:
    """Twenty sends of each key at once, while connections are reset -> one task for each key, the same
    body for every send."""
    cluster = launch()
    keys, sends = 10, 20
    proxy = Proxy(("127.0.0.1", httpx.URL(cluster.command_urls[0]).port or 0))
    url = f"http://127.0.0.1:{proxy.start()}"
    over = threading.Event()

    def strike() -> None:
        for _ in range(STRIKES):
            if over.wait(0.1):
                return
            proxy.reset()
            proxy.heal()

    striking = threading.Thread(target=strike)
    striking.start()
    names = [uuid4().hex for _ in range(keys)]
    try:
        found = await asyncio.gather(*(stored(url, name, name) for name in names * sends))
    finally:
        over.set()
        striking.join()
        proxy.stop()
    assert sum(lost for _, lost in found) > 0
    assert len({answer.body for answer, _ in found}) == keys
    assert sorted(await marks(service)) == sorted(names)
