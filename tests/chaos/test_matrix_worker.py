"""Workers in the fault matrix, as processes: killed, frozen, blocked, and taken along by a handler."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import httpx
import pytest
from redis.asyncio import Redis

from events.task_state import TaskState
from tests.chaos.cluster import Cluster
from tests.chaos.handlers import SOON, effects
from tests.chaos.inprocess import System, nothing_left
from tests.support import Service, eventually

LEASE = 1.0
LOOK = 0.5
"""Seconds between two looks of the sweeper at the leases."""
DISPATCH = 1.0
"""From the append to the worker, if no notification arrives: a poll."""
TAKEOVER = LEASE + 2 * LOOK + DISPATCH
"""How long after a worker's death its tasks run again at the latest; at the default lease of 15 s, 17 s."""
BUSY = 3.0
"""Other tests run on this machine."""


@pytest.fixture
def cluster(tmp_path: Path, dsn: str, redis_url: str) -> Iterator[Cluster]:
    """A dispatcher and two workers."""
    copies = {"dispatcher": 1, "worker": 2}
    with Cluster(
        tmp_path / "cluster", dsn=dsn, redis_url=redis_url, copies=copies, lease_seconds=LEASE
    ) as cluster:
        yield cluster


@pytest.fixture
def tasks(service: Service, redis_url: str) -> System:
    """What the tests ask of the log; it runs nothing itself."""
    return System(service, redis_url)


def marked(mark: str, **payload: object) -> dict[str, object]:
    return {"mark": mark, **payload}


async def by_worker(system: System, tasks: Sequence[TaskState]) -> dict[str, list[TaskState]]:
    """Those that run, by the worker that runs them."""
    states = await system.service.commands.load([task.id for task in tasks])
    found: dict[str, list[TaskState]] = {}
    for state in states.values():
        if state.status == "running" and state.worker is not None:
            found.setdefault(state.worker, []).append(state)
    return found


async def started_again(system: System, tasks: Sequence[TaskState], attempt: int = 2) -> None:
    async def condition() -> bool:
        states = await system.service.commands.load([task.id for task in tasks])
        return all(state.attempt >= attempt for state in states.values())

    await eventually(condition, f"attempt {attempt}", within=TAKEOVER + BUSY)


def frozen(cluster: Cluster) -> str:
    """The worker that stands still."""
    for name in cluster.names:
        pid = cluster.pid(name)
        stat = Path(f"/proc/{pid}/stat").read_text() if pid is not None else ""
        if stat.rpartition(")")[2].split()[:1] == ["T"]:
            return name
    raise LookupError("none stands still")


def metric(cluster: Cluster, name: str, metric: str) -> float:
    text = httpx.get(f"{cluster.health_url(name)}/metrics", trust_env=False).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{metric} "))


def attempts_of(cluster: Cluster, task: TaskState) -> list[tuple[int, bool]]:
    """Of the effects that the task had: attempt, and whether the fenced resource took it."""
    return [(e.attempt, e.accepted) for e in effects(cluster.effects_file) if e.task == str(task.id)]


async def test_worker_killed_mid_handler_and_its_tasks_run_again_in_time(
    cluster: Cluster, tasks: System
) -> None:
    """SIGKILL while handlers run -> each of its tasks is started again within a lease and two looks, alone
    and uncounted; those of the other worker go on."""
    slow = await tasks.create("slow", marked("m", seconds=1.5), 12)
    await tasks.all(slow, "running")
    shares = await by_worker(tasks, slow)
    name = max(shares, key=lambda name: len(shares[name]))
    await asyncio.to_thread(cluster.kill, name)
    killed = time.monotonic()
    await started_again(tasks, shares[name])
    took = time.monotonic() - killed
    assert LEASE - LOOK < took < TAKEOVER + BUSY

    await tasks.all(slow, "completed")
    struck = {task.id for task in shares[name]}
    for task in slow:
        state = await tasks.service.state(task.id)
        assert (state.attempt, state.failures) == (2 if task.id in struck else 1, 0)
        assert attempts_of(cluster, task) == [(state.attempt, True)]


async def test_worker_killed_between_effect_and_completion_and_the_token_tells_them_apart(
    cluster: Cluster, tasks: System, redis: Redis
) -> None:
    """SIGKILL after the effect, before the completion is in the log -> the task runs again; its effect
    comes a second time, under a higher attempt; the log has one completion."""
    await asyncio.to_thread(cluster.failpoints.arm, "worker-after-effect-before-complete")
    (task,) = await tasks.create("mark", marked("m"), 1)
    await tasks.all([task], "completed", within=TAKEOVER + BUSY)

    assert cluster.failpoints.fired("worker-after-effect-before-complete")
    assert attempts_of(cluster, task) == [(1, True), (2, True)]
    assert await tasks.losses(task) == [("lost", False)]
    await eventually(lambda: nothing_left(redis, "default"), "empty streams")


@pytest.mark.parametrize(
    ("failpoint", "attempts"),
    [("worker-after-read-before-start", 1), ("worker-after-start-before-ack", 2)],
)
async def test_worker_killed_around_the_start_leaves_nothing_behind(
    cluster: Cluster, tasks: System, redis: Redis, failpoint: str, attempts: int
) -> None:
    """SIGKILL with an entry in hand -> before the start another worker claims it; after it the log owns the
    task, the sweeper gives it a new entry, and the old one is dropped unrun."""
    await asyncio.to_thread(cluster.failpoints.arm, failpoint)
    (task,) = await tasks.create("mark", marked("m"), 1)
    await tasks.all([task], "completed", within=2 * TAKEOVER + BUSY)

    assert cluster.failpoints.fired(failpoint)
    assert attempts_of(cluster, task) == [(attempts, True)]
    await eventually(lambda: nothing_left(redis, "default"), "empty streams")


async def test_worker_frozen_for_longer_than_its_lease_is_refused_when_it_wakes(
    cluster: Cluster, tasks: System
) -> None:
    """SIGSTOP between effect and completion, SIGCONT when another worker has completed the task -> the late
    completion changes nothing and is counted; the worker goes on."""
    await asyncio.to_thread(cluster.failpoints.arm, "worker-after-effect-before-complete", "stop")
    (task,) = await tasks.create("mark", marked("m"), 1)
    await tasks.all([task], "completed", within=TAKEOVER + BUSY)
    before = await tasks.service.state(task.id)
    name = await asyncio.to_thread(frozen, cluster)
    assert name != before.worker
    cluster.resume(name)

    async def counted() -> bool:
        names = ("taskledger_finishes_superseded_total", "taskledger_leases_lost_total")
        return all(metric(cluster, name, each) == 1 for each in names)

    await eventually(counted, "a refused completion, and the lease that had lapsed")
    assert await tasks.service.state(task.id) == before
    assert attempts_of(cluster, task) == [(1, True), (2, True)]
    await asyncio.to_thread(cluster.await_ready, name)
    assert cluster.restarts[name] == 0


async def test_worker_whose_loop_is_blocked_for_leases_keeps_its_tasks(
    cluster: Cluster, tasks: System
) -> None:
    """A handler blocks the loop for three leases -> renewal has a thread of its own: nothing is lost."""
    running = [
        *await tasks.create("slow", marked("m", seconds=0.5), 4),
        *await tasks.create("stalling", marked("m", seconds=3 * LEASE), 1),
    ]
    await tasks.completed_once(running)


@pytest.mark.faults  # a loop is called dead after five seconds
async def test_worker_whose_loop_stays_silent_loses_its_lease_and_is_refused(
    cluster: Cluster, tasks: System
) -> None:
    """A handler blocks the event loop for good -> renewal stops after five seconds, the tasks are given to
    others, and what the blocked one says in the end is refused."""
    (task,) = await tasks.create("stalling", marked("m", seconds=9.0), 1)
    await tasks.all([task], "running")
    first = await tasks.service.state(task.id)
    await eventually(lambda: attempt(tasks, task, 2), "attempt 2", within=5 + TAKEOVER + BUSY)
    assert first.worker is not None
    name = first.worker

    async def refused() -> bool:
        return metric(cluster, name, "taskledger_finishes_superseded_total") == 1

    await eventually(refused, "a refused completion", within=10)
    await tasks.all([task], "completed", within=20)
    state = await tasks.service.state(task.id)
    assert (state.attempt, state.failures) == (2, 0)


async def attempt(system: System, task: TaskState, number: int) -> bool:
    return (await system.service.state(task.id)).attempt == number


@pytest.mark.faults  # ten leases
async def test_worker_with_healthy_tasks_ten_times_longer_than_the_lease_keeps_them(
    cluster: Cluster, tasks: System
) -> None:
    """Coroutines, threads and child processes that take ten leases -> none is stolen."""
    seconds = 10 * LEASE
    long = [
        *await tasks.create("slow", marked("m", seconds=seconds), 12),
        *await tasks.create("blocking", marked("m", seconds=seconds), 8),
        *await tasks.create("cpu", marked("m", seconds=seconds), 2),
    ]
    await tasks.completed_once(long, within=seconds + 20)


@pytest.mark.faults
async def test_worker_taken_along_by_its_handler_each_time_and_nobody_else_is_condemned(
    cluster: Cluster, tasks: System
) -> None:
    """A handler kills the process it runs in, each time -> one worker dies, once; from then on only a child
    of its own does, and the task is dead after its own attempts. What ran beside it is lost once and not
    counted; what comes later is as fast as before."""
    before = await latencies(tasks)
    neighbours = await tasks.create("slow", marked("n", seconds=1.0), 12)
    await tasks.all(neighbours, "running")
    (poison,) = await tasks.create("poison", marked("p"), 1, max_attempts=3, retry=SOON)
    await started_again(tasks, [poison])
    during = await latencies(tasks)
    await tasks.all([poison], "dead")

    state = await tasks.service.state(poison.id)
    assert (state.failures, state.attempt, sum(cluster.restarts.values())) == (3, 4, 1)
    assert await tasks.losses(poison) == [("lost", False), *[("lost", True)] * 3]
    await tasks.all(neighbours, "completed")
    for neighbour in neighbours:
        assert not any(counted for _, counted in await tasks.losses(neighbour))
    assert median(during) < 2 * median(before) + 0.05


async def latencies(system: System) -> list[float]:
    """Seconds from creation to completion by the log's clock, of tasks that come one after the other."""
    found: list[float] = []
    for _ in range(25):
        (task,) = await system.create("mark", marked("l"), 1)
        await system.all([task], "completed")
        state = await system.service.state(task.id)
        assert state.attempt == 1
        assert state.finished_at is not None
        found.append((state.finished_at - state.created_at).total_seconds())
    return found


async def test_worker_killed_by_one_poison_after_the_other_counts_nothing_against_a_neighbour(
    tmp_path: Path, dsn: str, redis_url: str, tasks: System
) -> None:
    """A neighbour that runs in a child since its first loss loses its worker to the next poison -> that is
    not its doing either: with a single attempt allowed it still completes."""
    folder = tmp_path / "one"
    copies = {"dispatcher": 1, "worker": 1}
    with Cluster(folder, dsn=dsn, redis_url=redis_url, copies=copies, lease_seconds=LEASE) as cluster:
        (neighbour,) = await tasks.create("slow", marked("n", seconds=1.0), 1, max_attempts=1)
        for lost in (1, 2):
            await eventually(lambda: attempt(tasks, neighbour, lost), within=TAKEOVER + BUSY)  # noqa: B023
            await tasks.create("poison", marked("p", kills=1), 1)
            await eventually(lambda: attempt(tasks, neighbour, lost + 1), within=TAKEOVER + BUSY)  # noqa: B023
        await tasks.all([neighbour], "completed")
        assert cluster.restarts["worker-0"] == 2
    assert await tasks.losses(neighbour) == [("lost", False)] * 2
