"""The sweeper's decisions on real servers, one sweep at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from command_side.commands import CancelTask, CompleteTask, FailTask, StartTask
from command_side.dispatcher.holes import HoleFinder
from command_side.dispatcher.leases import HolderWatch
from command_side.dispatcher.relay import Relay
from command_side.dispatcher.sweeper import Pace, Sweeper
from events.codec import EventMapper
from events.task_events import TaskFailed
from events.task_state import TaskState
from taskledger.redis import GROUP, position_key, stream_key
from tests.integration.dispatching import Bench, entry
from tests.support import Service, eventually, now

LEASE = 0.6


@dataclass
class Sweeps:
    bench: Bench
    relay: Relay
    sweeper: Sweeper
    holes: HoleFinder

    async def fold(self) -> None:
        await self.bench.caught_up(self.relay)

    async def running(self, *, holder: str | None = "h", **options: Any) -> TaskState:
        task = await self.bench.service.create(**options)
        state = (await self.bench.service.execute(task.id, StartTask(holder, "w"))).state
        await self.fold()
        return state

    async def renew(self, holder: str) -> None:
        await self.bench.sql(
            "insert into taskledger.leases (holder, lease_seconds) values (%s, %s)"
            " on conflict (holder) do update set counter = leases.counter + 1",
            (holder, LEASE),
        )

    async def until_lost(self, task: UUID) -> TaskState:
        """Sweeps until the running attempt is failed."""

        async def failed() -> TaskState | None:
            await self.sweeper.fail_lost()
            state = await self.bench.service.state(task)
            return state if state.status != "running" else None

        state = await eventually(failed, "the attempt is lost")
        assert isinstance(state, TaskState)
        return state

    async def causes(self, task: UUID) -> list[tuple[str, bool]]:
        mapper = EventMapper()
        events = [mapper.decode(event) for event in await self.bench.service.log.read_stream(task)]
        return [(event.cause, event.counted) for event in events if isinstance(event, TaskFailed)]


@pytest.fixture
async def sweeps(service: Service, redis: Redis) -> Sweeps:
    bench = Bench(service, redis)
    relay = await bench.started()
    holes = HoleFinder(bench.store, redis, (await bench.store.identity()).tag, 0.0)
    pace = Pace(lease=LEASE, holders=0.1, timeout_grace=10.0, hole_patience=0.0)
    sweeper = Sweeper(
        store=bench.store,
        commands=service.commands,
        clock=service.clock,
        holes=holes,
        pace=pace,
        status=bench.status,
        checkpoint=lambda: relay.checkpoint,
        want=relay.want,
    )
    return Sweeps(bench, relay, sweeper, holes)


async def test_a_schedule_is_queued_when_it_is_due_and_not_before(sweeps: Sweeps) -> None:
    soon = await sweeps.bench.service.create(run_at=now() + timedelta(seconds=1))
    later = await sweeps.bench.service.create(run_at=now() + timedelta(seconds=60))
    await sweeps.fold()
    await sweeps.sweeper.queue_due()
    assert (await sweeps.bench.service.state(soon.id)).status == "scheduled"

    async def queued() -> bool:
        await sweeps.sweeper.queue_due()
        return (await sweeps.bench.service.state(soon.id)).status == "queued"

    await eventually(queued)
    await sweeps.fold()
    state = await sweeps.bench.service.state(soon.id)
    assert state.queued_at is not None
    assert state.run_at is not None
    assert timedelta(0) <= state.queued_at - state.run_at < timedelta(seconds=1)
    assert await sweeps.bench.entries() == [entry(state)]
    assert (await sweeps.bench.service.state(later.id)).status == "scheduled"
    assert await sweeps.bench.service.topics(soon.id) == ["TaskCreated", "TaskQueued"]


async def test_retries_and_schedules_that_became_due_together_are_all_queued(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("command_side.dispatcher.sweeper.CHUNK", 3)
    retrying = await sweeps.running()
    await sweeps.bench.service.execute(retrying.id, FailTask(1, cause="error", jitter=0.0))
    at = now() + timedelta(seconds=0.3)
    tasks = [await sweeps.bench.service.create(run_at=at) for _ in range(7)]
    await sweeps.fold()

    async def all_queued() -> bool:
        await sweeps.sweeper.queue_due()
        await sweeps.fold()
        return all(row["state"] == "queued" for row in (await sweeps.bench.table()).values())

    await eventually(all_queued)
    assert sweeps.bench.status.queued_again == 8
    assert len(await sweeps.bench.entries()) == 8
    assert {task.id for task in tasks} < set(await sweeps.bench.table())


async def test_nothing_is_swept_twice_while_the_fold_is_behind(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await sweeps.bench.service.create(run_at=now() + timedelta(seconds=0.2))
    await sweeps.fold()

    async def queued() -> bool:
        await sweeps.sweeper.queue_due()
        return sweeps.bench.status.queued_again == 1

    await eventually(queued)
    loads = 0
    load = sweeps.bench.service.commands.load

    async def counting(ids: Sequence[UUID]) -> dict[UUID, TaskState]:
        nonlocal loads
        loads += 1
        return await load(ids)

    monkeypatch.setattr(sweeps.bench.service.commands, "load", counting)
    for _ in range(3):
        await sweeps.sweeper.queue_due()
    assert loads == 0
    assert await sweeps.bench.service.topics(task.id) == ["TaskCreated", "TaskQueued"]


async def test_a_dead_holders_attempts_are_lost_first_uncounted_then_counted(sweeps: Sweeps) -> None:
    task, neighbour = await sweeps.running(max_attempts=1), await sweeps.running()
    await sweeps.renew("h")
    lost = await sweeps.until_lost(task.id)

    assert (lost.status, lost.isolated, lost.failures) == ("queued", True, 0)
    assert (await sweeps.bench.service.state(neighbour.id)).status == "queued"
    assert await sweeps.bench.service.topics(task.id) == [
        "TaskCreated",
        "TaskStarted",
        "TaskFailed",
        "TaskQueued",
    ]
    await sweeps.fold()
    assert entry(lost) in await sweeps.bench.entries()

    await sweeps.bench.service.execute(task.id, StartTask("another", "w"))
    await sweeps.fold()
    dead = await sweeps.until_lost(task.id)
    assert (dead.status, dead.failures) == ("dead", 1)
    assert await sweeps.causes(task.id) == [("lost", False), ("lost", True)]


async def test_an_http_claim_without_a_lease_is_lost_after_a_lease_time(sweeps: Sweeps) -> None:
    task = await sweeps.running(holder=None)
    assert (await sweeps.until_lost(task.id)).status == "queued"


async def test_a_holder_that_renews_keeps_its_attempt(sweeps: Sweeps) -> None:
    healthy = await sweeps.running(holder="healthy")
    dead = await sweeps.running(holder="dead")

    async def lost() -> bool:
        await sweeps.renew("healthy")
        await sweeps.sweeper.fail_lost()
        return (await sweeps.bench.service.state(dead.id)).status == "queued"

    await eventually(lost)
    assert (await sweeps.bench.service.state(healthy.id)).attempt == 1
    assert (await sweeps.bench.service.state(healthy.id)).status == "running"


async def test_an_attempt_that_ended_meanwhile_is_left_alone(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fold is late: what it shows as running is done, or runs again."""
    done, again = await sweeps.running(), await sweeps.running()
    await sweeps.bench.service.execute(done.id, CompleteTask(1, {}))
    await sweeps.bench.service.execute(again.id, FailTask(1, cause="handed_back"))
    await sweeps.bench.service.execute(again.id, StartTask("other", "w"))
    seen: set[str] = set()
    observe = HolderWatch.observe

    def remembering(watch: HolderWatch, *arguments: Any) -> set[str]:
        dead = observe(watch, *arguments)
        seen.update(dead)
        return dead

    monkeypatch.setattr(HolderWatch, "observe", remembering)

    async def judged() -> bool:
        await sweeps.sweeper.fail_lost()
        return seen == {"h"}

    await eventually(judged)
    assert sweeps.bench.status.lost == 0
    assert (await sweeps.bench.service.state(done.id)).status == "completed"
    assert (await sweeps.bench.service.state(again.id)).attempt == 2


async def test_a_lost_attempt_that_was_to_be_cancelled_is_cancelled(sweeps: Sweeps) -> None:
    task = await sweeps.running()
    await sweeps.bench.service.execute(task.id, CancelTask(by="ops"))
    await sweeps.fold()
    assert (await sweeps.until_lost(task.id)).status == "cancelled"


async def test_an_attempt_past_its_timeout_and_the_grace_is_failed(sweeps: Sweeps) -> None:
    late = await sweeps.running(timeout_seconds=5)
    within = await sweeps.running(timeout_seconds=60)
    await sweeps.sweeper.fail_overdue()
    assert (await sweeps.bench.service.state(late.id)).status == "running"
    await sweeps.bench.sql("update taskledger.outstanding set timeout_at = timeout_at - interval '16 s'")
    await sweeps.sweeper.fail_overdue()

    state = await sweeps.bench.service.state(late.id)
    assert (state.status, state.cause, state.failures) == ("retrying", "timeout", 1)
    assert state.error is not None
    assert (state.error.type, state.error.message) == ("Timeout", "the attempt ran longer than 5 s")
    assert (await sweeps.bench.service.state(within.id)).status == "running"
    assert sweeps.bench.status.timed_out == 1


async def test_a_single_hole_is_replaced_under_a_new_position(sweeps: Sweeps) -> None:
    kept, hole = await sweeps.bench.service.create(), await sweeps.bench.service.create()
    await sweeps.fold()
    stream = stream_key("default", "sum", "normal")
    await sweeps.bench.redis.xdel(stream, entry(hole)[0])
    await sweeps.sweeper.replace_holes()
    await sweeps.fold()

    state = await sweeps.bench.service.state(hole.id)
    assert await sweeps.bench.service.topics(hole.id) == ["TaskCreated", "TaskQueued"]
    assert await sweeps.bench.entries() == [entry(kept), entry(state)]
    await sweeps.sweeper.replace_holes()
    assert sweeps.bench.status.replaced == 1


async def test_an_entry_that_a_worker_holds_is_no_hole(sweeps: Sweeps) -> None:
    task = await sweeps.bench.service.create()
    await sweeps.fold()
    stream = stream_key("default", "sum", "normal")
    await sweeps.bench.redis.xgroup_create(stream, GROUP, "0")
    await sweeps.bench.redis.xreadgroup(GROUP, "w", {stream: ">"})
    await sweeps.sweeper.replace_holes()

    assert await sweeps.bench.service.topics(task.id) == ["TaskCreated"]


async def test_an_entry_deleted_for_a_start_that_was_not_folded_yet_is_no_hole(sweeps: Sweeps) -> None:
    task = await sweeps.bench.service.create()
    await sweeps.fold()
    await sweeps.bench.service.execute(task.id, StartTask("h", "w"))
    await sweeps.bench.redis.xdel(stream_key("default", "sum", "normal"), entry(task)[0])
    assert len(await sweeps.holes.find(now())) == 1, "by what was folded it is one"
    await sweeps.sweeper.replace_holes()

    assert await sweeps.bench.service.topics(task.id) == ["TaskCreated", "TaskStarted"]


@pytest.mark.parametrize("position", [None, "0.aaaaaaaa", "nonsense", "99.aaaaaaaa"])
async def test_a_redis_that_lost_everything_has_no_holes(sweeps: Sweeps, position: str | None) -> None:
    task = await sweeps.bench.service.create()
    await sweeps.fold()
    await sweeps.bench.redis.flushall()
    if position is not None:
        await sweeps.bench.redis.set(position_key("default"), position)
    await sweeps.sweeper.replace_holes()

    assert await sweeps.bench.service.topics(task.id) == ["TaskCreated"]


async def test_all_that_waits_is_looked_through_in_turn(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("command_side.dispatcher.holes.CHECKED_A_SWEEP", 2)
    monkeypatch.setattr("command_side.dispatcher.holes.CHECKED_AT_ONCE", 1)
    tasks = [await sweeps.bench.service.create(queue=queue) for queue in "aabbb"]
    await sweeps.fold()
    await sweeps.bench.redis.delete(*(stream_key(queue, "sum", "normal") for queue in "ab"))
    found = [[task for task, _ in await sweeps.holes.find(now())] for _ in range(4)]

    ids = [task.id for task in tasks]
    assert found == [ids[:2], ids[2:4], ids[4:], ids[:2]]


async def test_a_fresh_entry_is_given_time(sweeps: Sweeps) -> None:
    await sweeps.bench.service.create()
    await sweeps.fold()
    await sweeps.bench.redis.delete(stream_key("default", "sum", "normal"))
    assert await sweeps.holes.find(now() - timedelta(seconds=60)) == []


async def test_a_task_that_cannot_be_read_keeps_no_other_waiting(sweeps: Sweeps) -> None:
    at = now() + timedelta(seconds=0.2)
    poisoned = await sweeps.bench.service.create(run_at=at)
    good = await sweeps.bench.service.create(run_at=at)
    await sweeps.fold()
    await sweeps.bench.append_raw(poisoned, "TaskTeleported")

    async def queued() -> bool:
        await sweeps.sweeper.queue_due()
        return (await sweeps.bench.service.state(good.id)).status == "queued"

    await eventually(queued)
    await sweeps.sweeper.queue_due()
    assert sweeps.bench.status.poison == 1


async def test_only_what_is_old_is_purged(sweeps: Sweeps) -> None:
    for key, age in (("old", "31 days"), ("young", "29 days")):
        await sweeps.bench.sql(
            "insert into taskledger.idempotency_keys values"
            " ('default', 'create', %s, '', 1, 1, now() - %s::interval)",
            (key, age),
        )
    for holder, age in (("gone", "2 hours"), ("here", "50 minutes")):
        await sweeps.bench.sql(
            "insert into taskledger.leases (holder, lease_seconds, renewed_at)"
            " values (%s, 15, now() - %s::interval)",
            (holder, age),
        )
    await sweeps.sweeper.purge()

    async with sweeps.bench.service.pool.connection() as connection:
        keys = await (await connection.execute("select key from taskledger.idempotency_keys")).fetchall()
        holders = await (await connection.execute("select holder from taskledger.leases")).fetchall()
    assert (keys, holders) == ([("young",)], [("here",)])
