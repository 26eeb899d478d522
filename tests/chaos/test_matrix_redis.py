"""Redis in the fault matrix, losing its data: no task is lost, and none runs twice."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from command_side.commands import CancelTask
from events.task_state import TaskState
from taskledger.embedded import EmbeddedValkey
from taskledger.redis import GROUP, make_redis, position_key, stream_key
from tests.chaos.inprocess import System, nothing_left
from tests.chaos.servers import Servers
from tests.support import eventually

RESUMES_WITHIN = 10.0
"""Seconds from Redis answering again to tasks being run."""
STREAM = stream_key("default", "echo", "normal")

Break = Callable[[Servers, Path], None]


def killed(valkey: Servers, _: Path) -> None:
    valkey.kill_valkey()
    valkey.start_valkey()


def cut_short(valkey: Servers, folder: Path) -> None:
    """The last writes never reached the disk."""
    valkey.kill_valkey()
    (file,) = (folder / "valkey" / "appendonlydir").glob("*.incr.aof")
    with file.open("rb+") as opened:
        opened.truncate(file.stat().st_size * 2 // 3)
    valkey.start_valkey()


def flushed(valkey: Servers, _: Path) -> None:
    valkey.flushall()


def emptied(valkey: Servers, _: Path) -> None:
    valkey.empty_valkey()


async def resumes(system: System, before: Sequence[TaskState]) -> None:
    """Redis answers: new tasks are run in time, and everything runs exactly once."""
    since = time.monotonic()
    new = await system.echoes(20)
    await system.all(new, "completed")
    assert time.monotonic() - since < RESUMES_WITHIN
    await system.completed_once([*before, *new])


@pytest.mark.parametrize("fault", [killed, cut_short, flushed, emptied])
async def test_redis_lost_with_or_without_its_data_costs_latency_alone(
    system: System, valkey: Servers, broker: Redis, tmp_path: Path, fault: Break
) -> None:
    """SIGKILL and restart; a file that lacks its end; FLUSHALL; an empty one -> groups and entries are made
    anew within five seconds, what ran does not run again, and nothing is left over."""
    done = await system.echoes(40)
    await system.completed_once(done)
    running = await system.create("sleep", {"seconds": 0.5}, 4)
    await system.all(running, "running")
    waiting = await system.echoes(5, queue="nobody")
    nobody = stream_key("nobody", "echo", "normal")

    async def published() -> bool:
        found: Any = await broker.xrange(nobody)
        assert [fields["task"] for _, fields in found] == [str(task.id) for task in waiting]
        return True

    await eventually(published, "the entries of what waits")
    await asyncio.to_thread(fault, valkey, tmp_path)
    await resumes(system, [*done, *running])
    await eventually(published, "those entries, made anew", within=RESUMES_WITHIN)

    assert [await system.queueings(task) for task in waiting] == [[]] * len(waiting)
    await eventually(lambda: nothing_left(broker, "default"), "empty streams")


async def test_redis_emptied_again_and_again_under_load_and_every_task_runs_once(
    system: System, valkey: Servers
) -> None:
    """FLUSHALL while tasks are being published, read and acknowledged -> each of them runs, and once."""
    tasks: list[TaskState] = []
    for _ in range(6):
        tasks += await system.echoes(40)
        await asyncio.to_thread(valkey.flushall)
    await system.completed_once(tasks)


async def test_redis_without_its_group_is_no_storm_of_errors(system: System, broker: Redis) -> None:
    """The group is gone while the stream lives (NOGROUP) -> it is made anew from 0, after a pause."""
    await system.completed_once(await system.echoes(1))
    for _ in range(3):
        await broker.xgroup_destroy(STREAM, GROUP)
        await system.completed_once(await system.echoes(3))
    errors: dict[str, Any] = await broker.info("errorstats")
    assert 1 <= errors["errorstat_NOGROUP"]["count"] < 30


async def test_redis_with_an_older_file_is_refilled_and_runs_nothing_twice(
    system: System, valkey: Servers, broker: Redis
) -> None:
    """An older append-only file is put back: entries of finished tasks return, later ones are missing ->
    the relay sees the lower position and refills; what has run is dropped."""
    gate = await system.create("wait_async", {}, 8)  # takes every slot
    await system.all(gate, "running")
    old = await system.echoes(10)

    async def published() -> bool:
        return await broker.xlen(STREAM) == len(old)

    await eventually(published, "the old entries")
    await asyncio.to_thread(valkey.save_valkey)
    for task in gate:
        await system.service.execute(task.id, CancelTask())
    later = await system.echoes(10)
    await system.completed_once([*old, *later])
    await asyncio.to_thread(valkey.roll_back_valkey)
    await resumes(system, [*old, *later])

    await eventually(lambda: nothing_left(broker, "default"), "empty streams")
    assert system.workers[0].worker.status()["entries"]["settled"] >= len(old)


async def test_redis_replica_that_lagged_takes_over_as_after_a_rollback(
    system: System, valkey: Servers, broker: Redis, tmp_path: Path
) -> None:
    """A replica that has missed the last writes is promoted -> it is refilled from the log."""
    replica = EmbeddedValkey(tmp_path / "replica")
    await asyncio.to_thread(replica.start)
    following = make_redis(replica.url, name="test")
    try:
        await broker.config_set("repl-diskless-sync-delay", "0")
        await follow(following, valkey)
        first = await system.echoes(10)
        await system.completed_once(first)
        await eventually(lambda: caught_up(following, broker), "a replica that has caught up")
        await following.replicaof("127.0.0.1", "1")  # it hears nothing any more
        missed = [*await system.echoes(10), *await system.echoes(10, queue="nobody")]
        await system.completed_once(missed[:10])
        valkey.redis_proxy.target = urlsplit(replica.url).path
        await asyncio.to_thread(valkey.kill_valkey)
        await following.replicaof("NO", "ONE")
        await resumes(system, [*first, *missed[:10]])
        nobody = stream_key("nobody", "echo", "normal")

        async def refilled() -> bool:
            return await following.xlen(nobody) == len(missed[10:])

        await eventually(refilled, "the entries that the replica had missed", within=RESUMES_WITHIN)
    finally:
        await following.aclose()
        await asyncio.to_thread(replica.stop)


async def follow(following: Redis, valkey: Servers) -> None:
    """Through the proxy, as the server itself listens on no port. With its password, since it will be
    asked for it."""
    password = urlsplit(valkey.redis_url).password or ""
    await following.config_set("masterauth", password)
    await following.config_set("requirepass", password)
    await following.replicaof("127.0.0.1", str(valkey.redis_proxy.port))


async def caught_up(following: Redis, leading: Redis) -> bool:
    position = await leading.get(position_key("default"))
    return position is not None and await following.get(position_key("default")) == position
