"""The projector's rows of the fault matrix: whatever happens to it, rows are the fold of the log, once."""

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from command_side.commands import CancelTask, CompleteTask, FailTask, StartTask
from events.errors import LogRewound
from projector.rebuild import rebuild, rollback
from projector.verify import inspect
from tests.chaos.cluster import Cluster
from tests.integration.projection import (
    append_raw,
    execute,
    following,
    present,
    project,
    table,
)
from tests.integration.query import query_api
from tests.support import Service, eventually, wait_until

DEAF = "redis://127.0.0.1:9"
"""Nobody listens there: what runs on it needs no Redis."""
KILLS = 20
HALTED = 'taskledger_follower_halted{follower="tasks/1"}'
LAG = 'taskledger_lag_events{follower="tasks/1"}'
PARKED = 'taskledger_events_parked{projection="tasks"}'


@pytest.fixture
def projectors(dsn: str, tmp_path: Path) -> Iterator[Cluster]:
    """Two of them, not started, as processes of their own."""
    cluster = Cluster(tmp_path, dsn=dsn, redis_url=DEAF, copies={"projector": 2})
    try:
        yield cluster
    finally:
        cluster.stop()


@asynccontextmanager
async def load(service: Service) -> AsyncGenerator[None]:
    """Tasks are created, run, fail and are cancelled for the length of the block."""
    stop = asyncio.Event()

    async def client(number: int) -> None:
        choice = random.Random(number)
        while not stop.is_set():
            task = await service.create(kind=f"k{number}", queue=f"q{number % 2}")
            ends = CompleteTask(1, number), FailTask(attempt=1, cause="lost"), CancelTask()
            await service.execute(task.id, StartTask(holder="h", worker="w"))
            await service.execute(task.id, choice.choice(ends))
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(client(number))
        try:
            yield
        finally:
            stop.set()


def checkpoint(dsn: str) -> int:
    return max((generation.checkpoint for generation in present(dsn)), default=0)


async def level(service: Service, within: float = 20.0) -> None:
    head = await service.log.head()
    await asyncio.to_thread(
        wait_until, lambda: checkpoint(service.dsn) >= head, "the projector is level", within=within
    )


def moved(dsn: str, beyond: int) -> None:
    wait_until(lambda: checkpoint(dsn) > beyond, f"a checkpoint beyond {beyond}", within=20)


async def test_projector_killed_at_its_borders_folds_each_event_once(
    service: Service, projectors: Cluster
) -> None:
    """SIGKILL before a batch is written, before its commit and after it -> rows and checkpoint go together,
    another one takes over, and no counter counts twice."""
    points = ("projector-mid-projection", "projector-after-view-before-commit", "projector-after-commit")
    projectors.start()
    async with load(service):
        for point in points:
            before = checkpoint(service.dsn)
            projectors.failpoints.arm(point)
            await asyncio.to_thread(wait_until, partial(projectors.failpoints.fired, point), point)
            await asyncio.to_thread(moved, service.dsn, before)
    await level(service)
    assert inspect(service.dsn).differences == []
    assert projectors.restarts.total() >= len(points)


@pytest.mark.faults
async def test_projector_killed_at_random_folds_each_event_once(
    service: Service, projectors: Cluster
) -> None:
    """SIGKILL at any moment, again and again, of whichever leads -> as at the borders."""
    choice = random.Random(20)
    projectors.start()
    async with load(service):
        for _ in range(KILLS):
            await asyncio.sleep(choice.uniform(0, 0.3))
            before = checkpoint(service.dsn)
            for name in projectors.names:
                await asyncio.to_thread(projectors.kill, name)
            await asyncio.to_thread(moved, service.dsn, before)
            assert inspect(service.dsn).differences == []
    await level(service)
    assert inspect(service.dsn).differences == []


@pytest.mark.faults
async def test_projector_frozen_in_its_transaction_is_replaced_and_adds_nothing(
    service: Service, projectors: Cluster
) -> None:
    """SIGSTOP between writing a batch and its commit -> the server ends its sessions, the other leads; when
    it wakes up its batch is void, and it stands by."""
    projectors.start()
    point = "projector-after-view-before-commit"
    async with load(service):
        projectors.failpoints.arm(point, "stop")
        await asyncio.to_thread(wait_until, lambda: projectors.failpoints.fired(point), "it stands still")
        await asyncio.to_thread(moved, service.dsn, checkpoint(service.dsn))
        for name in projectors.names:
            projectors.resume(name)
            await asyncio.to_thread(projectors.await_ready, name)
    await level(service)
    assert inspect(service.dsn).differences == []
    said = "".join(projectors.said(name) for name in projectors.names)
    assert "Traceback" not in said, said[-6000:]


async def test_projector_of_two_one_folds_and_the_other_stands_by(service: Service) -> None:
    """Two instances -> one leads; every event is counted once, and the standby says what it is."""
    with following(service.dsn) as one, following(service.dsn) as other:
        async with load(service):
            await asyncio.to_thread(moved, service.dsn, 50)
        await level(service)
        said = [projector.status() for projector in (one, other)]
        assert sorted(status.waiting_for or "" for status in said) == ["", "another projector leads"]
        assert all(status.ready for status in said)
    assert inspect(service.dsn).differences == []


async def test_projector_at_an_event_it_cannot_apply_says_so_and_can_be_sent_on(
    service: Service, tmp_path: Path
) -> None:
    """An event it cannot apply -> it stops there, not ready, and says where and what to do: once in its
    log, each time in its readiness, and in its metrics. Parked, everything else goes on."""
    with Cluster(tmp_path, dsn=service.dsn, redis_url=DEAF, copies={"projector": 1}) as projectors:
        get = partial(_get, projectors.health_url("projector-0"))
        task = await service.create()
        poison = await append_raw(service, task.id, 2, "TaskTeleported", b"{}")
        behind = [await service.create() for _ in range(3)]

        def tells(metric: str, value: float) -> bool:
            return f"{metric} {value}\n" in get("/metrics").text

        wait_until(lambda: tells(HALTED, 1.0) and tells(LAG, 4.0), "the metrics tell")
        answer = get("/health/ready")
        assert answer.status_code == 503
        for part in (f"position {poison}: TaskTeleported {task.id} version 2", f"taskledger park {poison}"):
            assert part in answer.json()["detail"]
        assert get("/health/live").status_code == 200

        done = projectors.run("park", str(poison), "--reason", "written by release 9", "--by", "ada")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"parked: position {poison} (TaskTeleported {task.id} version 2)")
        wait_until(lambda: projectors.ready("projector-0"), "it goes on")
        wait_until(lambda: tells(HALTED, 0.0) and tells(PARKED, 1.0) and tells(LAG, 0.0), "as before")
        assert projectors.said("projector-0").count("TaskTeleported") == 2  # it stood, it is parked
        kept = projectors.run("unpark", str(poison))
        assert (kept.returncode, kept.stderr.count("\n")) == (2, 1)
        assert "stays parked" in kept.stderr
        checked = projectors.run("verify")
        assert (checked.returncode, "no difference, 1 parked" in checked.stdout) == (0, True)
    assert len(table(service.dsn)) == 1 + len(behind)


async def test_projector_at_an_event_it_cannot_apply_stops_no_dispatch(
    service: Service, redis_url: str, tmp_path: Path
) -> None:
    """As above -> tasks are dispatched and finish, read table or not; only the event's own task waits."""
    copies = {"command-api": 1, "dispatcher": 1, "projector": 1, "worker": 1}
    with Cluster(tmp_path, dsn=service.dsn, redis_url=redis_url, copies=copies) as cluster:
        url = cluster.command_urls[0]
        cluster.hold("worker-0")
        cluster.kill("worker-0")
        poisoned, *others = [_submit(url, f"a{n}") for n in range(20)]
        wait_until(lambda: cluster.ready("dispatcher-0"), "it has published")
        await append_raw(service, poisoned, 2, "TaskTeleported", b"{}")
        wait_until(lambda: not cluster.ready("projector-0"), "the projector stands")
        cluster.release("worker-0")
        others += [_submit(url, f"b{n}") for n in range(10)]
        cluster.kill("dispatcher-0")
        others += [_submit(url, f"c{n}") for n in range(10)]

        async def finished() -> bool:
            return all([(await service.topics(task))[-1] == "TaskCompleted" for task in others])

        await eventually(finished, "all others finish")
        cluster.await_ready("dispatcher-0")
        assert not cluster.ready("projector-0")
        assert await service.topics(poisoned) == ["TaskCreated", "TaskTeleported"]
        assert _post(f"{url}/tasks/{poisoned}/cancel", {}).status_code >= 500
        assert "Traceback" not in "".join(cluster.said(name) for name in cluster.names)


def _get(url: str, path: str) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=5) as client:
        return client.get(f"{url}{path}")


def _post(url: str, body: object) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=5) as client:
        return client.post(url, json=body)


def _submit(url: str, mark: str) -> UUID:
    answer = _post(f"{url}/tasks", {"kind": "mark", "payload": {"mark": mark}})
    assert answer.status_code == 201
    return UUID(answer.json()["id"])


CUT = "delete from taskledger.task_events where notification_id > %s"


@pytest.mark.parametrize("grown", [False, True], ids=["shorter", "grown-again"])
async def test_projector_ahead_of_the_log_refuses_until_a_rebuild(service: Service, grown: bool) -> None:
    """The log was restored to an older state -> it does not follow, and says so, even where the log has
    grown beyond its checkpoint since: it would pass over events that it never saw."""
    for _ in range(20):
        await service.create()
    project(service.dsn)
    execute(service.dsn, CUT, 10)
    execute(
        service.dsn, "select setval(pg_get_serial_sequence('taskledger.task_events','notification_id'), 10)"
    )
    for _ in range(15 if grown else 5):
        await service.create()
    with following(service.dsn) as projector:
        wait_until(lambda: "rebuild" in (projector.status().waiting_for or ""), "it refuses")
        assert not projector.status().ready
        assert projector.status().checkpoint == 20
        assert inspect(service.dsn).count > 0
        async with query_api(service.dsn) as api:
            told = (await api.get("/health/ready")).json()
            assert told["degraded"] == [] if grown else "restored" in told["degraded"][0]

        rebuilt = rebuild(service.dsn)
        assert rebuilt.differences != ()
        wait_until(lambda: projector.status().ready, "it goes on with the new tables")
        await service.create()
        await level(service)
    assert inspect(service.dsn).differences == []
    with pytest.raises(LogRewound):
        rollback(service.dsn)
