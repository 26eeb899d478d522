"""The worker against a real PostgreSQL and a real Valkey; the relay's part is played by hand."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr
from redis.asyncio import Redis

from command_side.commands import CancelTask, FailTask, StartTask
from command_side.worker.main import Worker
from events.task_state import TaskState
from taskledger.postgres import connect_sync
from taskledger.redis import GROUP, stream_key
from taskledger.settings import PostgresSettings, RedisSettings, Settings
from tests.integration.workers import (
    HANDLERS,
    LEASE_SECONDS,
    Running,
    create,
    is_empty,
    key_of,
    settled,
    submit,
    worker_settings,
)
from tests.support import Service, eventually

Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(dsn: str, redis_url: str) -> AsyncIterator[Start]:
    workers: list[Running] = []

    async def start(*, ready: bool = True, lease_seconds: float = LEASE_SECONDS, **options: Any) -> Running:
        running = Running(Worker(worker_settings(dsn, redis_url, lease_seconds, **options)))
        workers.append(running)
        return await running.ready() if ready else running

    yield start
    for running in workers:
        if not running.task.done():
            await running.stopped()


async def again(service: Service, redis: Redis, task: TaskState) -> None:
    """Publishes the task's latest queueing, as the relay would."""
    await service.publish(redis, await service.state(task.id))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_completes_and_leaves_nothing_in_the_stream(
    start: Start, service: Service, redis: Redis
) -> None:
    task = await submit(service, redis, "sum", {"x": 20, "y": 22})
    running = await start(name="anna")

    state = await settled(service, task, "completed")

    assert state.result == {"sum": 42}
    assert state.attempt == 1
    assert (state.worker, await service.topics(task.id)) == (
        "anna",
        ["TaskCreated", "TaskStarted", "TaskCompleted"],
    )
    await eventually(lambda: is_empty(redis, task), "an empty stream")
    assert (await running.stopped()) == 0
    assert await redis.xinfo_consumers(key_of(task), GROUP) == []


@pytest.mark.parametrize(
    ("kind", "payload", "result"),
    [
        ("add_in_thread", [1, 2, 3], 6),
        ("sha256", {"text": ""}, {"hexdigest": "e3b0c44298fc1c149afbf4c8996fb924"}),
        ("echo", {"nested": [None, True, 1.5, "ü"]}, {"nested": [None, True, 1.5, "ü"]}),
    ],
)
async def test_every_execution(
    start: Start, service: Service, redis: Redis, *, kind: str, payload: Any, result: Any
) -> None:
    await start()
    task = await submit(service, redis, kind, payload)
    state = await settled(service, task, "completed")
    if kind == "sha256":
        assert state.result["hexdigest"].startswith(result["hexdigest"])
    else:
        assert state.result == result


async def test_a_process_handler_runs_in_another_process(
    start: Start, service: Service, redis: Redis
) -> None:
    await start()
    task = await submit(service, redis, "pid")
    child, parent, attempt = (await settled(service, task, "completed")).result
    assert os.getpid() not in (child, parent)
    assert attempt == 1


@pytest.mark.parametrize(
    ("kind", "type_", "cause", "status"),
    [
        ("never", "Discard", "discarded", "dead"),
        ("exit", "SystemExit", "error", "retrying"),
        ("broken", "ValueError", "error", "retrying"),
        ("nan", "InvalidResult", "error", "dead"),
    ],
)
async def test_failures_are_recorded(
    start: Start, service: Service, redis: Redis, *, kind: str, type_: str, cause: str, status: str
) -> None:
    await start()
    task = await submit(service, redis, kind)
    state = await settled(service, task, status)
    assert state.error is not None
    assert (state.error.type, state.cause) == (type_, cause)
    assert "\x00" not in state.error.message + (state.error.traceback or "")


async def test_a_payload_its_type_refuses_is_dead_at_once(
    start: Start, service: Service, redis: Redis
) -> None:
    await start()
    task = await submit(service, redis, "sum", {"x": "5", "y": 2})
    state = await settled(service, task, "dead")
    assert state.error is not None
    assert state.error.type == "InvalidPayload"
    assert state.attempt == 1


async def test_retry_later_is_not_counted(start: Start, service: Service, redis: Redis) -> None:
    await start()
    task = await submit(service, redis, "later", max_attempts=1)
    state = await settled(service, task, "retrying")
    assert (state.cause, state.failures) == ("retry_later", 0)


async def test_worthless_entries_are_dropped_and_never_run(
    start: Start, service: Service, redis: Redis
) -> None:
    finished = await create(service, "echo")
    await service.execute(finished.id, CancelTask())
    foreign = await create(service, "sum", {"x": 1, "y": 1})
    key = stream_key("default", "echo", "normal")
    await redis.xadd(key, {"task": str(uuid4())})
    await redis.xadd(key, {"task": "not an id"})
    await redis.xadd(key, {b"\xff\xfe": b"\xff"})
    await redis.xadd(key, {"task": str(finished.id)})
    await redis.xadd(key, {"task": str(foreign.id)})
    good = await create(service, "echo", {"good": True})
    await redis.xadd(key, {"task": str(good.id)})
    running = await start()

    await settled(service, good, "completed")

    await eventually(lambda: is_empty(redis, good), "an empty stream")
    assert (await service.state(finished.id)).status == "cancelled"
    assert (await service.state(foreign.id)).status == "queued"
    assert running.worker.status()["entries"] == {"forged": 4, "settled": 1, "started": 1}


async def test_an_entry_seen_twice_runs_once(start: Start, service: Service, redis: Redis) -> None:
    task = await create(service, "echo")
    for _ in range(3):
        await redis.xadd(key_of(task), {"task": str(task.id)})
    await start()
    await settled(service, task, "completed")
    await eventually(lambda: is_empty(redis, task), "an empty stream")
    assert await service.topics(task.id) == ["TaskCreated", "TaskStarted", "TaskCompleted"]


async def test_recovers_when_redis_is_emptied(start: Start, service: Service, redis: Redis) -> None:
    await start()
    await redis.flushall()
    task = await submit(service, redis, "echo", {"after": "flush"})
    await settled(service, task, "completed")


async def test_priority_lanes(start: Start, service: Service, redis: Redis) -> None:
    tasks = [
        await submit(service, redis, "echo", {}, priority=priority)
        for priority in ("low", "low", "normal", "high", "high")
    ]
    await start(concurrency=1)
    states = [await settled(service, task, "completed") for task in tasks]
    order = sorted(states, key=lambda state: state.position)
    assert [state.priority for state in order] == ["high", "high", "normal", "low", "low"]


async def test_two_workers_share(start: Start, service: Service, redis: Redis) -> None:
    tasks = [await submit(service, redis, "echo", {"n": n}) for n in range(60)]
    await asyncio.gather(start(name="one"), start(name="two"))
    states = [await settled(service, task, "completed") for task in tasks]
    assert {state.attempt for state in states} == {1}
    assert {state.worker for state in states} == {"one", "two"}


async def test_never_takes_more_than_its_slots(start: Start, service: Service, redis: Redis) -> None:
    tasks = [await submit(service, redis, "wait_async") for _ in range(5)]
    tasks += [await submit(service, redis, "wait_thread") for _ in range(5)]
    running = await start(concurrency=3)

    async def full() -> bool:
        return bool(running.worker.status()["running"] == 3)

    await eventually(full, "full slots")
    states = [await service.state(task.id) for task in tasks]
    assert sum(state.status == "running" for state in states) == 3
    pending = [await redis.xpending(key_of(task), GROUP) for task in (tasks[0], tasks[-1])]
    assert sum(p["pending"] for p in pending) == 0


async def test_claims_what_a_dead_consumer_left(start: Start, service: Service, redis: Redis) -> None:
    task = await submit(service, redis, "echo")
    await redis.xgroup_create(key_of(task), GROUP, id="0")
    await redis.xreadgroup(GROUP, "dead", {key_of(task): ">"})
    await start()
    await settled(service, task, "completed")


@pytest.mark.parametrize("kind", ["wait_async", "wait_thread", "wait_process"])
async def test_cancel_while_running(
    start: Start, service: Service, redis: Redis, tmp_path: Path, kind: str
) -> None:
    await start()
    file = tmp_path / "pids"
    task = await submit(service, redis, kind, str(file) if kind == "wait_process" else None)
    await settled(service, task, "running")
    if kind == "wait_process":
        await eventually(lambda: exists(file), "the child")
    await service.execute(task.id, CancelTask(by="me", reason="why not"))

    state = await settled(service, task, "cancelled")

    assert (state.cancel_by, state.cancel_reason) == ("me", "why not")
    if kind == "wait_process":
        assert not any(alive(pid) for pid in pids_in(file))


async def exists(file: Path) -> bool:
    return bool(pids_in(file))


def pids_in(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.mark.parametrize("kind", ["wait_async", "wait_process", "deaf_thread"])
async def test_timeout(start: Start, service: Service, redis: Redis, tmp_path: Path, kind: str) -> None:
    running = await start()
    file = tmp_path / "file"
    payload = None if kind == "wait_async" else str(file)
    task = await submit(service, redis, kind, payload, timeout_seconds=0.5)

    state = await settled(service, task, "retrying")

    assert state.cause == "timeout"
    if kind == "wait_process":
        assert not any(alive(pid) for pid in pids_in(file))
    if kind == "deaf_thread":
        assert running.worker.status()["stuck"] == 1
        file.touch()

        async def back() -> bool:
            return bool(running.worker.status()["stuck"] == 0)

        await eventually(back, "the slot")


async def test_half_the_slots_stuck_asks_to_be_replaced(
    start: Start, service: Service, redis: Redis, tmp_path: Path
) -> None:
    running = await start(concurrency=2)
    file = tmp_path / "file"
    task = await submit(service, redis, "deaf_thread", str(file), timeout_seconds=0.2)
    await settled(service, task, "retrying")
    assert await asyncio.wait_for(running.task, 20) == 75
    file.touch()


async def test_a_child_that_dies_is_lost_then_isolated_then_dead(
    start: Start, service: Service, redis: Redis
) -> None:
    await start()
    neighbour = await submit(service, redis, "wait_async")
    task = await submit(service, redis, "die_in_process", max_attempts=2)

    async def requeued() -> bool:
        return (await service.state(task.id)).cause == "lost"

    await eventually(requeued, "the first loss")
    state = await service.state(task.id)
    assert (state.status, state.failures, state.isolated) == ("queued", 0, True)
    await again(service, redis, task)

    state = await settled(service, task, "retrying")
    assert (state.failures, state.attempt) == (1, 2)
    assert state.error is not None
    assert "SIGKILL" in state.error.message
    assert (await settled(service, neighbour, "running")).attempt == 1


async def test_after_a_loss_any_kind_runs_alone_in_a_child(
    start: Start, service: Service, redis: Redis
) -> None:
    """The crash kind in a worker that survives it."""
    tasks = [await create(service, kind) for kind in ("own_pid", "who_thread", "crash")]
    for task in tasks:
        await service.execute(task.id, StartTask("another holder", "another"))
        await service.execute(task.id, FailTask(1, "lost"))
        await again(service, redis, task)
    running = await start()

    assert (await settled(service, tasks[0], "completed")).result != os.getpid()
    assert (await settled(service, tasks[1], "completed")).result == "MainThread"
    crashed = await settled(service, tasks[2], "retrying")
    assert (crashed.cause, crashed.failures) == ("lost", 1)
    assert not running.task.done()


async def test_drain_hands_back_what_does_not_end(start: Start, service: Service, redis: Redis) -> None:
    running = await start()
    tasks = [await submit(service, redis, kind) for kind in ("wait_async", "wait_thread")]
    for task in tasks:
        await settled(service, task, "running")

    assert await running.stopped() == 0

    for task in tasks:
        state = await service.state(task.id)
        assert (state.status, state.failures, state.cause) == ("queued", 0, "handed_back")
    assert await lease_rows(service) == []


async def test_drain_waits_for_what_ends(start: Start, service: Service, redis: Redis) -> None:
    running = await start(drain_seconds=10)
    task = await submit(service, redis, "sleep", {"seconds": 0.5})
    await settled(service, task, "running")
    assert await running.stopped() == 0
    assert (await service.state(task.id)).status == "completed"


async def lease_rows(service: Service) -> list[dict[str, Any]]:
    async with service.pool.connection() as connection:
        cursor = await connection.execute(
            "select holder, counter, progress, note, info from taskledger.leases order by info is null"
        )
        names = ("holder", "counter", "progress", "note", "info")
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]


@pytest.mark.parametrize(("kind", "progress"), [("halfway", 0.5), ("halfway_process", 0.25)])
async def test_lease_and_progress(
    start: Start, service: Service, redis: Redis, kind: str, progress: float
) -> None:
    running = await start(name="anna")
    task = await submit(service, redis, kind)

    async def reported() -> list[dict[str, Any]] | None:
        rows = await lease_rows(service)
        return rows if len(rows) == 2 else None

    own, attempt = await eventually(reported, "a progress row")
    assert own["holder"] == running.worker.holder == (await service.state(task.id)).holder
    assert own["info"]["worker"] == "anna"
    assert own["info"]["pid"] == os.getpid()
    assert (attempt["holder"], attempt["progress"]) == (f"{task.id}:1", progress)

    async def counted() -> bool:
        return bool((await lease_rows(service))[0]["counter"] > own["counter"])

    await eventually(counted, "a higher counter")
    await service.execute(task.id, CancelTask())

    async def gone() -> bool:
        return len(await lease_rows(service)) == 1

    await eventually(gone, "the progress row's end")


async def test_a_superseded_attempt_is_stopped_and_its_outcome_dropped(
    start: Start, service: Service, redis: Redis
) -> None:
    running = await start()
    task = await submit(service, redis, "wait_async")
    await settled(service, task, "running")
    await service.execute(task.id, FailTask(1, "lost"))  # as the sweeper would

    async def idle() -> bool:
        status = running.worker.status()
        return bool(status["running"] == 0 and status["outcomes"] == {"superseded": 1})

    await eventually(idle, "a free slot")
    assert (await service.topics(task.id))[-2:] == ["TaskFailed", "TaskQueued"]


async def test_a_paused_queue_starts_nothing_until_it_is_resumed(
    start: Start, service: Service, redis: Redis
) -> None:
    await service.commands.set_paused("slow", paused=True)
    before = await submit(service, redis, "echo", {}, queue="slow")
    running = await start(queues=("slow", "default"))
    meanwhile = await submit(service, redis, "echo", {}, queue="slow")
    other = await submit(service, redis, "echo", {})

    await settled(service, other, "completed")
    assert (await service.state(before.id)).status == "queued"
    assert (await service.state(meanwhile.id)).status == "queued"

    await service.commands.set_paused("slow", paused=False)
    await settled(service, before, "completed")
    await settled(service, meanwhile, "completed")
    assert running.worker.status()["entries"]["started"] == 3


async def test_entries_of_a_paused_queue_outlive_their_worker(
    start: Start, service: Service, redis: Redis
) -> None:
    await service.commands.set_paused("default", paused=True)
    task = await submit(service, redis, "echo")
    first = await start()
    await first.stopped()
    await service.commands.set_paused("default", paused=False)
    await start()
    await settled(service, task, "completed")


@pytest.fixture
def close_database(dsn: str, postgres_server: str) -> Iterator[Callable[[bool], None]]:
    """Throws everybody out and lets nobody in, or lets them in again."""
    name = str(conninfo_to_dict(dsn)["dbname"])
    with connect_sync(postgres_server, name="test") as admin:

        def close(closed: bool) -> None:
            allow = sql.SQL("false" if closed else "true")
            admin.execute(
                sql.SQL("alter database {} allow_connections {}").format(sql.Identifier(name), allow)
            )
            if closed:
                admin.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
                )

        yield close
        close(False)


async def test_a_result_survives_the_database_going_away(
    start: Start,
    service: Service,
    redis: Redis,
    tmp_path: Path,
    close_database: Callable[[bool], None],
) -> None:
    running = await start(lease_seconds=20)
    file = tmp_path / "go"
    task = await submit(service, redis, "deaf_thread", str(file))
    await settled(service, task, "running")

    close_database(True)
    file.touch()

    async def waits() -> bool:
        status = running.worker.status()
        return bool(status["outcomes"] == {"completed": 1} and status["waiting_for"])

    await eventually(waits, "a worker that waits")
    assert running.worker.status()["running"] == 1

    close_database(False)
    assert (await settled(service, task, "completed")).result == "done"


async def test_waits_for_a_migration(empty_dsn: str, redis_url: str) -> None:
    settings = Settings(
        postgres=PostgresSettings(dsn=SecretStr(empty_dsn)),
        redis=RedisSettings(url=SecretStr(redis_url)),
        handlers=HANDLERS,
    )
    running = Running(Worker(settings))

    async def waits() -> bool:
        return any("migrate" in reason for reason in running.worker.status()["waiting_for"])

    await eventually(waits, "the reason")
    assert await running.stopped() == 0


async def test_after_a_lost_connection_it_finds_what_it_was_given(
    start: Start, service: Service, redis: Redis
) -> None:
    """The reply that carried the entry was lost: it is in the worker's pending list, and nobody knows."""
    running = await start(lease_seconds=60)
    key = stream_key("default", "echo", "normal")
    tasks = [await create(service, "echo", n) for n in range(20)]

    async def joined() -> bool:
        return bool(await redis.exists(key) and await redis.xinfo_groups(key))

    await eventually(joined, "the group")
    async with redis.pipeline(transaction=True) as pipe:  # at once: no read of the worker comes between
        for task in tasks:
            pipe.xadd(key, {"task": str(task.id)}, id=f"{task.queued_position}-1")
        pipe.xreadgroup(GROUP, running.worker.holder, {key: ">"})
        await pipe.execute()
    await redis.client_kill_filter(_type="normal", skipme=True)
    for task in tasks:
        await settled(service, task, "completed")
