"""Workers in the fault matrix, in-process: a silent database, bad results, what they do not know."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from command_side.worker import consumer
from events.task_state import TaskState
from taskledger.redis import GROUP, stream_key
from tests.chaos.inprocess import ONCE, System, nothing_left, service_on
from tests.chaos.store import Store
from tests.integration.dispatching import Bench
from tests.integration.worker_handlers import UNSTORABLE
from tests.support import Service, eventually

ECHO = stream_key("default", "echo", "normal")


@pytest.fixture
async def plain(service: Service, redis_url: str) -> AsyncIterator[System]:
    """On the session's servers. Nothing runs yet."""
    system = System(service, redis_url)
    yield system
    await system.stop()


@pytest.fixture
async def frail(store: Store, redis_url: str) -> AsyncIterator[System]:
    """On a PostgreSQL that can be broken. Nothing runs yet."""
    async with service_on(store.direct) as service:
        system = System(service, redis_url)
        yield system
        store.servers.resume_postgres()
        store.servers.start_postgres()
        await system.stop()


async def hold(seconds: float) -> None:
    """A fault lasts."""
    await asyncio.to_thread(threading.Event().wait, seconds)


@pytest.mark.faults  # three leases
@pytest.mark.parametrize("fault", ["frozen", "stopped"])
async def test_worker_with_a_hundred_tasks_keeps_them_while_postgres_is_away_for_three_leases(
    frail: System, store: Store, fault: str
) -> None:
    """SIGSTOP of PostgreSQL, or its immediate stop, for three leases; the worker reaches it again later
    than the sweeper does -> nothing is stolen, since the sweeper could not look either; every outcome is
    recorded."""
    await frail.dispatcher()
    await frail.worker(concurrency=100, dsn=store.dsn)
    tasks = await frail.create("sleep", {"seconds": 6.5}, 100)
    await frail.all(tasks, "running")
    down, up = {
        "frozen": (store.servers.suspend_postgres, store.servers.resume_postgres),
        "stopped": (store.servers.crash_postgres, store.servers.start_postgres),
    }[fault]
    await asyncio.to_thread(down)
    await hold(3 * frail.lease_seconds)
    store.servers.postgres_proxy.reset(only=b"taskledger-worker-lease")
    await asyncio.to_thread(up)
    await hold(frail.lease_seconds * 2 / 3)
    store.servers.postgres_proxy.heal()
    await frail.completed_once(tasks, within=30)
    assert frail.dispatchers[0].lost == 0
    assert frail.workers[0].worker.status()["outcomes"] == {"completed": 100}


@pytest.mark.faults
async def test_worker_whose_lease_connection_hangs_renews_over_another(frail: System, store: Store) -> None:
    """The one session that renews gets no answer any more (a frozen backend, a dead network) -> it is cut
    and replaced within the lease; nothing is stolen."""
    frail.lease_seconds = 3.0
    await frail.dispatcher()
    await frail.worker()
    tasks = await frail.create("sleep", {"seconds": 4.5}, 4)
    await frail.all(tasks, "running")
    (backend,) = store.sessions("taskledger-worker-lease")
    os.kill(backend, signal.SIGSTOP)
    try:
        await frail.completed_once(tasks)
    finally:
        os.kill(backend, signal.SIGCONT)
    assert frail.dispatchers[0].lost == 0


async def test_worker_without_postgres_keeps_results_and_starts_nothing(
    frail: System, store: Store
) -> None:
    """PostgreSQL stops while a handler runs -> the worker says so, starts nothing, and stores the result
    when it is back."""
    await frail.dispatcher()
    running = await frail.worker()
    tasks = await frail.create("sleep", {"seconds": 2}, 4)
    await frail.all(tasks, "running")
    await asyncio.to_thread(store.servers.crash_postgres)

    async def waits() -> bool:
        status = running.worker.status()
        done = status["outcomes"] == {"completed": 4} and status["running"] == 4
        return bool(done and not status["ready"])

    await eventually(waits, "results that wait")
    await asyncio.to_thread(store.servers.start_postgres)
    await frail.completed_once([*tasks, *await frail.echoes(5)])
    await running.ready()


@pytest.mark.parametrize("kind", ["unstorable", "unstorable_process"])
async def test_worker_lives_when_a_result_cannot_be_stored(plain: System, kind: str) -> None:
    """NaN, NUL, a lone surrogate, 2 MB, no JSON, nested too deep, a number too large -> the task is dead
    with a cause that says what is wrong; trying again would not help; the worker goes on."""
    await plain.dispatcher()
    running = await plain.worker(concurrency=16)
    tasks = {why: (await plain.create(kind, why, 1))[0] for why in UNSTORABLE}
    await plain.all(list(tasks.values()), "dead")
    for why, task in tasks.items():
        state = await plain.service.state(task.id)
        assert state.error is not None
        assert (state.error.type, state.attempt, state.failures) == ("InvalidResult", 1, 1), why
        assert state.error.message.startswith("the result"), state.error.message
        assert len(state.error.message) < 500
    await plain.completed_once(await plain.echoes(3))
    assert not running.task.done()


async def test_worker_never_reads_a_kind_it_does_not_know_and_a_capable_one_finds_the_task(
    plain: System, redis: Redis
) -> None:
    """A rolling deployment: the API takes a kind that the running workers lack -> its entry stays in its
    own stream, untouched and not replaced, however long; the first worker with the kind runs it."""
    status = await plain.dispatcher(hole_patience=0.0, holes=0.05)
    old = await plain.worker()
    (task,) = await plain.create("mark", {"mark": "m"}, 1)
    stream = stream_key("default", "mark", "normal")
    await eventually(lambda: length(redis, stream, 1), "its entry")
    await plain.completed_once(await plain.echoes(20))
    assert (await redis.xinfo_groups(stream), status.replaced) == ([], 0)
    assert set(old.worker.status()["entries"]) == {"started"}

    new = await plain.worker(handlers=("tests.chaos.handlers",))
    await plain.completed_once([task])
    assert new.worker.status()["entries"] == {"started": 1}


async def length(redis: Redis, stream: str, count: int) -> bool:
    return await redis.xlen(stream) == count


async def test_worker_leaves_a_task_with_an_event_of_a_later_release_to_a_later_worker(
    plain: System, redis: Redis
) -> None:
    """A task's history holds an event that this release does not know -> its entry stays pending, never
    acknowledged, and other tasks go on; a worker that knows the event takes it over."""
    bench = Bench(plain.service, redis)
    (task,) = await plain.echoes(1)
    await bench.append_raw(task, "TaskTeleported")
    await plain.service.publish(redis, task)
    old = await plain.worker()
    others = await plain.echoes(3)
    for other in others:
        await plain.service.publish(redis, other)
    await plain.completed_once(others)

    async def left_alone() -> bool:
        pending: Any = await redis.xpending(ECHO, GROUP)
        return bool(old.worker.status()["entries"]["unknown"] >= 1 and pending["pending"] == 1)

    await eventually(left_alone, "a pending entry")
    assert await length(redis, ECHO, 1)
    await old.stopped()
    await known(bench, task, "TaskQueued", '{"event_uid":"u","reason":"lost"}')
    await plain.worker()
    await plain.all([task], "completed")
    await eventually(lambda: nothing_left(redis, "default"), "empty streams")


async def known(bench: Bench, task: TaskState, topic: str, state: str) -> None:
    """From now on the event `TaskTeleported` means this: a later release reads it."""
    await bench.sql(
        "update taskledger.task_events set topic = %s, state = %s"
        " where originator_id = %s and topic = 'TaskTeleported'",
        (topic, state.encode(), task.id),
    )


async def test_worker_keeps_an_outcome_that_only_a_later_release_can_judge(
    plain: System, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that this release does not know follows the start -> the handler is not disturbed, its
    outcome waits, the worker stays ready for others; when the event can be read, the outcome is judged."""
    monkeypatch.setattr("command_side.worker.finish.SLOW_SECONDS", 0.2)
    bench = Bench(plain.service, redis)
    await plain.dispatcher()
    running = await plain.worker()
    (task,) = await plain.create("deaf_thread", str(tmp_path / "go"), 1)
    await plain.all([task], "running")
    await bench.append_raw(await plain.service.state(task.id), "TaskTeleported")
    await plain.completed_once(await plain.echoes(3))  # some renewals later
    assert running.worker.status()["outcomes"] == {"completed": 3}
    (tmp_path / "go").touch()

    async def waits() -> bool:
        return bool(running.worker.status()["outcomes"] == {"completed": 4})

    await eventually(waits, "the handler's end")
    await plain.completed_once(await plain.echoes(3))
    status = running.worker.status()
    assert (status["ready"], status["running"], status["outcomes"].get("refused")) == (True, 1, None)
    await known(bench, task, "TaskCancelRequested", '{"event_uid":"u","by":"ops"}')
    await plain.all([task], "completed")


async def test_worker_forgets_consumers_of_dead_processes_but_not_what_they_hold(
    plain: System, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that were killed leave their consumers behind -> removed when nothing is pending for them;
    one with something pending stays until that was claimed."""
    monkeypatch.setattr(consumer, "FORGET_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(consumer, "FORGET_AFTER_MS", 300)
    (task,) = await plain.echoes(1)
    await plain.service.publish(redis, task)
    await redis.xgroup_create(ECHO, GROUP, id="0", mkstream=True)
    await redis.xreadgroup(GROUP, "holding", {ECHO: ">"})
    for name in ("empty", "idle"):
        await redis.xgroup_createconsumer(ECHO, GROUP, name)
    running = await plain.worker()

    async def names() -> set[str]:
        return {str(each["name"]) for each in await redis.xinfo_consumers(ECHO, GROUP)}

    async def forgotten() -> bool:
        return await names() == {"holding", running.worker.holder}

    await eventually(forgotten, "consumers with nothing pending to be gone")
    await plain.completed_once([task])

    async def alone() -> bool:
        return await names() == {running.worker.holder}

    await eventually(alone, "the other one to be gone, too")


@pytest.mark.parametrize("how", ["consumer removed", "acknowledged by a stranger"])
async def test_worker_entry_that_nobody_holds_any_more_is_replaced(
    plain: System, redis: Redis, how: str
) -> None:
    """An entry was handed out, and then its consumer was removed with it, or somebody acknowledged it: no
    worker will ever be given it -> the sweeper queues the task anew, and the dead entry is deleted."""
    (task,) = await plain.echoes(1)
    status = await plain.dispatcher(hole_patience=0.3, holes=0.1)
    await eventually(lambda: length(redis, ECHO, 1), "the entry")
    await redis.xgroup_create(ECHO, GROUP, id="0")
    await redis.xreadgroup(GROUP, "careless", {ECHO: ">"})
    if how == "consumer removed":
        await redis.xgroup_delconsumer(ECHO, GROUP, "careless")
    else:
        await redis.xack(ECHO, GROUP, f"{task.queued_position}-1")
    await plain.worker()
    await plain.all([task], "completed")

    assert (await plain.queueings(task), status.replaced) == (["lost"], 1)
    assert [topic for topic in await plain.service.topics(task.id) if topic != "TaskQueued"] == ONCE
    await eventually(lambda: nothing_left(redis, "default"), "empty streams")
