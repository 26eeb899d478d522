"""Whole dispatchers, as a process runs them: leaders, servers that go and come, a clean end."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo
from redis.asyncio import Redis

from command_side.commands import CancelTask, StartTask
from command_side.dispatcher import main
from command_side.dispatcher.main import LOCK, serve
from command_side.dispatcher.status import DispatcherStatus
from command_side.dispatcher.sweeper import Pace
from events.errors import ConfigurationError
from events.migrate import migrate
from taskledger.embedded import EmbeddedPostgres, EmbeddedValkey
from taskledger.postgres import Pool, connect
from taskledger.redis import make_redis
from taskledger.settings import PostgresSettings, RedisSettings, Settings
from tests.conftest import FAST
from tests.integration.dispatching import Bench, entry
from tests.support import Service, eventually, now

PACE = Pace(
    lease=1.0,
    due=0.1,
    holders=0.1,
    overdue=0.2,
    holes=0.2,
    hole_patience=0.0,
    timeout_grace=0.5,
    purge=60.0,
)


class Fleet:
    """Dispatchers of one test, stopped at its end."""

    def __init__(self, dsn: str, redis_url: str) -> None:
        self._settings = Settings(
            postgres=PostgresSettings.model_validate({"dsn": dsn, "pool_size": 6}),
            redis=RedisSettings.model_validate({"url": redis_url}),
        )
        self._running: list[tuple[asyncio.Event, asyncio.Task[None]]] = []

    def start(self) -> DispatcherStatus:
        status = DispatcherStatus()
        stop = asyncio.Event()
        task = asyncio.create_task(serve(self._settings, stop, status, PACE))
        self._running.append((stop, task))
        return status

    async def stop(self) -> None:
        for stop, _ in self._running:
            stop.set()
        for _, task in self._running:
            await asyncio.wait_for(task, 15)
        self._running.clear()


@pytest.fixture
async def fleet(dsn: str, redis_url: str) -> AsyncIterator[Fleet]:
    fleet = Fleet(dsn, redis_url)
    yield fleet
    await fleet.stop()


@pytest.fixture
def bench(service: Service, redis: Redis) -> Bench:
    return Bench(service, redis)


def true_of(status: DispatcherStatus, condition: Callable[[DispatcherStatus], bool]) -> Awaitable[Any]:
    async def holds() -> bool:
        return condition(status)

    return eventually(holds, f"the condition on {status}")


def leads(status: DispatcherStatus) -> bool:
    return status.leader and status.ready


async def published(bench: Bench, count: int, **lane: str) -> None:
    async def enough() -> bool:
        return len(await bench.entries(**lane)) == count

    await eventually(enough, f"{count} entries")


async def leading_backend(dsn: str) -> int:
    async with await connect(dsn, name="test") as connection:
        statement = (
            "select pid from pg_locks where locktype = 'advisory' and granted"
            " and (classid::bigint << 32) + objid::bigint = %s"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        row = await (await connection.execute(statement, (LOCK,))).fetchone()
        assert row is not None, "nobody leads"
        return int(row[0])


async def test_a_task_is_published_within_moments_of_its_append(fleet: Fleet, bench: Bench) -> None:
    status = fleet.start()
    await true_of(status, leads)
    task = await bench.service.create()
    await published(bench, 1)

    assert await bench.entries() == [entry(task)]
    snapshot = status.snapshot()
    assert (snapshot["ready"], snapshot["leader"], snapshot["published"]) == (True, True, 1)
    assert (snapshot["waiting_for"], snapshot["refused"], snapshot["poison"]) == ({}, 0, 0)


async def test_the_whole_sweep_runs_by_itself(fleet: Fleet, bench: Bench) -> None:
    await true_of(fleet.start(), leads)
    due = await bench.service.create(run_at=now() + timedelta(seconds=0.3))
    lost = await bench.service.create()
    late = await bench.service.create(timeout_seconds=0.2, max_attempts=1)
    for task in (lost, late):
        await bench.service.execute(task.id, StartTask(holder="silent", worker="w"))

    async def done() -> bool:
        states = await bench.service.commands.load([due.id, lost.id, late.id])
        return (
            states[due.id].status == "queued"
            and (states[lost.id].status, states[lost.id].isolated) == ("queued", True)
            and (states[late.id].status, states[late.id].cause) == ("dead", "timeout")
        )

    await eventually(done)


async def test_redis_emptied_under_way_is_refilled_without_finished_tasks(
    fleet: Fleet, bench: Bench
) -> None:
    status = fleet.start()
    await true_of(status, leads)
    tasks = [await bench.service.create() for _ in range(3)]
    await published(bench, 3)
    await bench.service.execute(tasks[1].id, CancelTask())
    await true_of(status, lambda s: s.checkpoint == 4)
    await bench.redis.flushall()
    await published(bench, 2)

    assert await bench.entries() == [entry(tasks[0]), entry(tasks[2])]


async def test_of_two_dispatchers_one_leads_and_is_replaced_when_its_session_ends(
    fleet: Fleet, bench: Bench
) -> None:
    first = fleet.start()
    await true_of(first, leads)
    second = fleet.start()
    await bench.service.create()
    await published(bench, 1)
    assert not second.leader
    assert second.ready, "standing by is what it is there for"

    ended = await leading_backend(bench.service.dsn)
    async with await connect(bench.service.dsn, name="test") as connection:
        await connection.execute("select pg_terminate_backend(%s)", (ended,))

    async def one_leads_in_another_session() -> bool:
        # The first may be the faster one again, sooner than anybody sees it without the lead.
        now_leading = await leading_backend(bench.service.dsn)
        return now_leading != ended and first.leader != second.leader

    await eventually(one_leads_in_another_session)
    await bench.service.create()
    await published(bench, 2)
    assert (first.refused, second.refused) == (0, 0)


async def test_a_leader_that_stops_is_followed_at_once(fleet: Fleet, bench: Bench) -> None:
    await true_of(fleet.start(), leads)
    await fleet.stop()
    successor = fleet.start()
    await true_of(successor, leads)
    await bench.service.create()
    await published(bench, 1)


async def test_another_writer_of_the_checkpoint_ends_the_term_and_a_new_one_begins(
    fleet: Fleet, bench: Bench
) -> None:
    status = fleet.start()
    await true_of(status, leads)
    await bench.service.create()
    await true_of(status, lambda s: s.checkpoint == 1)
    await bench.sql("update taskledger.checkpoints set position = 0 where name = 'outstanding'")
    await bench.service.create()

    await published(bench, 2)
    await true_of(status, lambda s: s.checkpoint == 2)
    assert await bench.checkpoint() == 2


async def test_it_waits_for_a_database_that_is_not_migrated(empty_dsn: str, redis_url: str) -> None:
    fleet = Fleet(empty_dsn, redis_url)
    status = fleet.start()
    try:
        await true_of(status, lambda s: "taskledger migrate" in s.waiting_for.get("postgres", ""))
        assert not status.ready
        await asyncio.to_thread(migrate, empty_dsn)
        await true_of(status, leads)
    finally:
        await fleet.stop()


async def test_it_stops_while_it_waits(redis_url: str, tmp_path: Path) -> None:
    fleet = Fleet(make_conninfo(host=str(tmp_path), dbname="nothing", user="nobody"), redis_url)
    status = fleet.start()
    await true_of(status, lambda s: s.waiting_for.get("postgres") == "PostgreSQL does not answer")
    await fleet.stop()


async def test_a_restored_log_without_a_new_tag_is_not_followed(fleet: Fleet, bench: Bench) -> None:
    await bench.service.create()
    await bench.started()
    await bench.sql("delete from taskledger.task_events")
    status = fleet.start()
    await true_of(status, lambda s: "taskledger restored" in s.waiting_for.get("log", ""))
    await bench.sql("update taskledger.log_identity set tag = 'aaaaaaaa'")
    await true_of(status, leads)
    assert await bench.table() == {}


async def test_settings_must_name_the_servers() -> None:
    with pytest.raises(ConfigurationError, match="TASKLEDGER__POSTGRES__DSN"):
        await serve(Settings(postgres=PostgresSettings(), redis=RedisSettings()), asyncio.Event())


async def test_redis_that_stops_and_starts_again(dsn: str, service: Service, tmp_path: Path) -> None:
    """With its files, and without: an empty one comes back."""
    server = EmbeddedValkey(tmp_path)
    url = await asyncio.to_thread(server.start)
    redis = make_redis(url, name="test")
    fleet, bench = Fleet(dsn, url), Bench(service, redis)
    status = fleet.start()
    try:
        await true_of(status, leads)
        tasks = [await service.create()]
        await published(bench, 1)
        for wipe in (False, True):
            await asyncio.to_thread(server.stop)
            await true_of(status, lambda s: "redis" in s.waiting_for)
            tasks.append(await service.create())
            await true_of(status, lambda s: s.checkpoint == len(tasks))
            if wipe:
                for file in (server.home / "appendonlydir").iterdir():
                    file.unlink()
            assert await asyncio.to_thread(server.start) == url
            await true_of(status, leads)
            await published(bench, len(tasks))
        assert await bench.entries() == [entry(task) for task in tasks]
    finally:
        await fleet.stop()
        await redis.aclose()
        await asyncio.to_thread(server.stop)


async def test_redis_away_at_the_start_is_waited_for_and_the_fold_goes_on(
    dsn: str, service: Service, tmp_path: Path
) -> None:
    fleet = Fleet(dsn, f"unix://{tmp_path}/nothing.sock")
    status = fleet.start()
    try:
        await service.create()
        await true_of(status, lambda s: s.checkpoint == 1 and "redis" in s.waiting_for)
        assert not status.ready
    finally:
        await fleet.stop()


async def test_postgres_that_stops_and_starts_again(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, settings=FAST)
    dsn = await asyncio.to_thread(server.start)
    await asyncio.to_thread(migrate, dsn)
    fleet = Fleet(dsn, redis_url)
    status = fleet.start()
    try:
        await true_of(status, leads)
        for mode in ("fast", "immediate"):
            await asyncio.to_thread(server.stop, mode=mode)
            await true_of(status, lambda s: not s.leader and "postgres" in s.waiting_for)
            assert await asyncio.to_thread(server.start) == dsn
            await true_of(status, leads)
    finally:
        await fleet.stop()
        await asyncio.to_thread(server.stop, mode="immediate")


PROGRAM = """
from taskledger.settings import load_settings
from command_side.dispatcher.main import run
run(load_settings())
"""


def started_process(dsn: str, redis_url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env={**os.environ, "TASKLEDGER__POSTGRES__DSN": dsn, "TASKLEDGER__REDIS__URL": redis_url},
        stderr=subprocess.PIPE,
        cwd=Path(main.__file__).parents[2],
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_ends_cleanly_when_told(
    bench: Bench, redis_url: str, number: signal.Signals
) -> None:
    process = started_process(bench.service.dsn, redis_url)
    try:
        await bench.service.create()
        await published(bench, 1)
        process.send_signal(number)
        _, said = await asyncio.to_thread(process.communicate, timeout=15)
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, said.decode()
    assert b"Traceback" not in said, said.decode()


async def test_a_frozen_process_is_replaced_and_does_no_harm_when_it_wakes(
    fleet: Fleet, bench: Bench, redis_url: str, pool: Pool
) -> None:
    process = started_process(bench.service.dsn, redis_url)
    try:
        first = await bench.service.create()
        await published(bench, 1)
        process.send_signal(signal.SIGSTOP)
        successor = fleet.start()
        await true_of(successor, leads)
        second = await bench.service.create()
        await published(bench, 2)
        process.send_signal(signal.SIGCONT)
        third = await bench.service.create()
        await published(bench, 3)
        async with pool.connection() as connection:
            sessions = "select count(*) from pg_stat_activity where application_name = %s and state <> ''"

            async def the_woken_one_stands_by() -> bool:
                row = await (
                    await connection.execute(sessions, ("taskledger-dispatcher-leader",))
                ).fetchone()
                return row == (2,)

            await eventually(the_woken_one_stands_by)
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)
    assert await bench.entries() == [entry(task) for task in (first, second, third)]
    await true_of(successor, lambda s: s.leader and s.checkpoint == 3)
    assert await bench.checkpoint() == 3


def test_the_lock_is_not_the_logs() -> None:
    """Those of append_v1 and of migrate(), in the same database."""
    assert LOCK not in (7311461898370, 7311461898371)
