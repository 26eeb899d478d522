"""The relay on real servers: what a stream holds, whatever happened to Redis, to us or to the log."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from command_side.commands import (
    CancelTask,
    CompleteTask,
    CreateTask,
    FailTask,
    ReplaceEntry,
    RequeueTask,
    StartTask,
    TaskCommand,
)
from command_side.dispatcher import overlay, publisher, relay
from command_side.dispatcher.outstanding import Changes
from command_side.dispatcher.relay import Relay, take_up
from command_side.dispatcher.store import OutstandingStore
from command_side.listener import listen
from command_side.service import Origin
from events.errors import CheckpointConflict, CommandRejected, LogRewound, StoreUnavailable
from events.ids import new_task_id
from events.task_state import TaskState
from taskledger.postgres import Pool, connect
from taskledger.redis import position_key, stream_key, streams_key
from tests.integration.dispatching import Bench, CountingTold, entry, row_as_tuple
from tests.support import Service, eventually, now


@pytest.fixture
def bench(service: Service, redis: Redis) -> Bench:
    return Bench(service, redis)


async def tag(bench: Bench) -> str:
    return (await bench.store.identity()).tag


async def many(service: Service, count: int, **options: Any) -> list[TaskState]:
    values: dict[str, Any] = {"kind": "sum", "payload": {}, **options}
    created = await service.commands.create([CreateTask(**values)] * count, Origin())
    return created.tasks


async def test_tasks_go_to_their_lanes_in_order_under_their_positions(bench: Bench) -> None:
    first, second = await bench.service.create(), await bench.service.create()
    high = await bench.service.create(priority="high")
    other = await bench.service.create("sha256", queue="mail", priority="low")
    await bench.started()

    assert await bench.entries() == [entry(first), entry(second)]
    assert await bench.entries(priority="high") == [entry(high)]
    assert await bench.entries("mail", "sha256", "low") == [entry(other)]
    assert await bench.position() == f"4.{await tag(bench)}", "all that was folded when it was first seen"


async def test_what_comes_later_is_published_as_it_comes(bench: Bench) -> None:
    relay = await bench.started()
    first = await bench.service.create()
    await bench.caught_up(relay)
    second = await bench.service.create()
    third = await bench.service.create()
    await relay.turn()

    assert await bench.entries() == [entry(first), entry(second), entry(third)]
    assert await bench.position() == f"3.{await tag(bench)}"
    assert (bench.status.published, bench.status.refused) == (3, 0)


@pytest.fixture
async def lazy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Relay]:
    """A relay at work that reads the log only when it has to; with the listener that tells it."""
    for name in ("FOLD_SECONDS", "POLL_SECONDS", "COMMIT_SECONDS"):
        monkeypatch.setattr(relay, name, 60.0)
    await many(bench.service, 1)
    leading = await bench.started()
    told = bench.told[-1]
    running = [
        asyncio.create_task(leading.run()),
        asyncio.create_task(listen(lambda: connect(bench.service.dsn, name="test-listen"), told.heard)),
    ]
    await eventually(lambda: told_of_the_connection(told), "the listener")
    yield leading
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def told_of_the_connection(told: CountingTold) -> bool:
    return told.looks > 0


async def test_what_is_told_whole_is_published_before_it_is_read(bench: Bench, lazy: Relay) -> None:
    task = await bench.service.create(priority="high")
    await eventually(lambda: bench.entries(priority="high"), "the entry")
    assert await bench.entries(priority="high") == [entry(task)]
    assert lazy.folded < task.position

    lazy.want(task.position)
    await eventually(lambda: committed(lazy, task.position), "the rows")
    assert (await bench.table())[task.id]["queued_position"] == task.position
    assert await bench.entries(priority="high") == [entry(task)]


async def test_a_task_queued_again_is_told_as_well(bench: Bench, lazy: Relay) -> None:
    task = await bench.service.create()
    await bench.service.execute(task.id, StartTask(holder="h", worker="w"))
    await bench.service.execute(task.id, FailTask(1, cause="handed_back"))
    again = await bench.service.state(task.id)

    async def both() -> bool:
        return (await bench.entries())[-2:] == [entry(task), entry(again)]

    await eventually(both, "both entries")
    assert lazy.folded < task.position


async def test_what_was_not_told_is_read(bench: Bench, lazy: Relay) -> None:
    """Several at once are told by their head alone; and what comes after a gap says nothing of it."""
    batch = await many(bench.service, 5)
    await eventually(lambda: folded(lazy, batch[-1].position), "the read")
    bench.told[-1].heard(f"{batch[-1].position + 2} 1 1/default/sum/normal/{new_task_id().hex}")
    late = await bench.service.create()

    async def there() -> bool:
        return (await bench.entries())[-6:] == [entry(task) for task in [*batch, late]]

    await eventually(there, "all of them, and nothing else")


async def test_a_crash_after_what_was_only_told_leaves_neither_gap_nor_double(
    bench: Bench, lazy: Relay
) -> None:
    task = await bench.service.create(priority="high")
    await eventually(lambda: bench.entries(priority="high"), "the entry")
    assert lazy.folded < task.position
    later = await bench.started()
    second = await bench.service.create(priority="high")
    await bench.caught_up(later)
    assert await bench.entries(priority="high") == [entry(task), entry(second)]


async def committed(leading: Relay, position: int) -> bool:
    return leading.checkpoint >= position


async def test_scheduled_tasks_wait(bench: Bench) -> None:
    await bench.service.create(run_at=now().replace(year=2035))
    await bench.started()

    assert await bench.entries() == []
    (row,) = (await bench.table()).values()
    assert (row["state"], row["due_at"].year) == ("scheduled", 2035)


async def test_a_task_queued_again_gets_a_new_entry_in_its_old_lane(bench: Bench) -> None:
    relay = await bench.started()
    task = await bench.service.create(priority="high")
    await bench.caught_up(relay)
    await bench.service.execute(task.id, StartTask(holder="h", worker="w"))
    await bench.service.execute(task.id, FailTask(1, cause="handed_back"))
    again = await bench.service.state(task.id)
    await bench.caught_up(relay)
    await bench.service.execute(task.id, CancelTask())
    await bench.caught_up(relay)
    await bench.service.execute(task.id, RequeueTask())
    requeued = await bench.service.state(task.id)
    await bench.caught_up(relay)

    assert await bench.entries(priority="high") == [entry(task), entry(again), entry(requeued)]


async def test_a_restart_leaves_neither_gap_nor_double(bench: Bench) -> None:
    before = await many(bench.service, 5)
    await bench.started()
    meanwhile = await many(bench.service, 5)
    later = await bench.started()
    after = await many(bench.service, 5)
    await bench.caught_up(later)

    assert await bench.entries() == [entry(task) for task in before + meanwhile + after]
    assert (bench.status.published, bench.status.refused) == (15, 0)


class LosesCommits(OutstandingStore):
    """Dies between publishing and committing."""

    async def commit(self, before: int, to: int, changes: Changes) -> None:
        raise StoreUnavailable(f"{before} {to} {len(changes.put)}")


async def test_a_crash_between_publishing_and_committing_publishes_nothing_twice(bench: Bench) -> None:
    await many(bench.service, 1)
    await bench.started()
    dying = await bench.caught_up(await bench.relay(LosesCommits(bench.service.pool)))
    tasks = await many(bench.service, 3)
    await dying.turn()
    with pytest.raises(StoreUnavailable):
        await dying.commit()
    assert (await bench.checkpoint(), len(await bench.entries())) == (1, 4)
    await bench.redis.xdel(stream_key("default", "sum", "normal"), *(entry(task)[0] for task in tasks))

    await bench.started()

    assert len(await bench.entries()) == 1, "workers had taken them"
    assert (await bench.checkpoint(), bench.status.published) == (4, 4)


class CountsCommits(OutstandingStore):
    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.commits: list[tuple[int, int, int, int]] = []
        """Checkpoint before and after, and how many rows were put and deleted."""

    async def commit(self, before: int, to: int, changes: Changes) -> None:
        await super().commit(before, to, changes)
        self.commits.append((before, to, len(changes.put), len(changes.gone)))


async def test_a_task_is_published_at_once_and_its_row_follows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CountsCommits(bench.service.pool)
    await bench.service.create()
    leading = await bench.caught_up(await bench.relay(store))
    store.commits.clear()
    monkeypatch.setattr(relay, "COMMIT_SECONDS", 3600.0)
    task = await bench.service.create()
    await leading.turn()
    assert (len(await bench.entries()), store.commits, leading.checkpoint) == (2, [], 1)

    await bench.service.execute(task.id, StartTask(holder="h", worker="w"))
    await leading.turn()
    await bench.service.execute(task.id, CompleteTask(1, {}))
    await leading.turn()
    await leading.commit()
    await leading.commit()
    assert store.commits == [(1, 4, 0, 0)], "it began and ended in between"


async def test_the_table_follows_after_a_while_when_it_lacks_much_or_when_somebody_waits_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.service.create()
    leading = await bench.started()
    monkeypatch.setattr(relay, "COMMIT_SECONDS", 3600.0)
    monkeypatch.setattr(overlay, "MAX_CHANGES", 3)
    await many(bench.service, 2)
    await leading.turn()
    assert leading.checkpoint == 1
    await many(bench.service, 1)
    await leading.turn()
    assert (leading.checkpoint, len(await bench.table())) == (4, 4)

    leading.want(5)
    await leading.turn()
    assert leading.checkpoint == 4
    await many(bench.service, 1)
    await leading.turn()
    assert (leading.checkpoint, len(await bench.table())) == (5, 5)

    monkeypatch.setattr(relay, "COMMIT_SECONDS", 0.0)
    await many(bench.service, 1)
    await leading.turn()
    assert (leading.checkpoint, len(await bench.table())) == (6, 6)


async def test_an_emptied_redis_gets_also_what_the_table_lacks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await bench.service.create()
    leading = await bench.started()
    monkeypatch.setattr(relay, "COMMIT_SECONDS", 3600.0)
    second = await bench.service.create()
    await leading.turn()
    await bench.redis.flushall()

    await bench.eventually_entries(leading, [entry(first), entry(second)])
    assert leading.checkpoint == 2


async def test_at_the_end_of_a_term_the_table_is_brought_up_to_date(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.service.create()
    leading = await bench.started()
    monkeypatch.setattr(relay, "COMMIT_SECONDS", 3600.0)
    monkeypatch.setattr(relay, "LOOK_SECONDS", 3600.0)
    await bench.service.create()
    running = asyncio.create_task(leading.run())
    await eventually(lambda: folded(leading, 2))
    assert await bench.checkpoint() == 1
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert await bench.checkpoint() == 2


async def folded(relay: Relay, position: int) -> bool:
    return relay.folded == position


async def test_a_row_that_another_leader_wrote_meanwhile_is_not_folded_upon(bench: Bench) -> None:
    task = await bench.service.create()
    await bench.started()
    other = await bench.service.create()
    await bench.service.execute(task.id, StartTask(holder="h", worker="w"))
    await bench.started()
    with pytest.raises(CheckpointConflict):
        await bench.store.rows([task.id, other.id], 1)
    assert set(await bench.store.rows([task.id, other.id], 3)) == {task.id, other.id}


async def test_finished_within_the_batch_is_not_published(bench: Bench) -> None:
    relay = await bench.started()
    task = await bench.service.create()
    await bench.service.execute(task.id, StartTask(holder="h", worker="w"))
    await bench.caught_up(relay)

    assert await bench.entries() == []


async def test_what_was_behind_at_the_start_is_published_as_far_as_it_is_still_queued(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "BATCH", 1)  # in between, both looked queued
    done, waiting = await bench.service.create(), await bench.service.create()
    await bench.service.execute(done.id, CancelTask())
    await bench.started()

    assert await bench.entries() == [entry(waiting)]


async def test_an_emptied_redis_is_filled_again_with_the_same_ids(bench: Bench) -> None:
    tasks = await many(bench.service, 4)
    mail = await bench.service.create(queue="mail")
    relay = await bench.started()
    await bench.service.execute(tasks[0].id, CancelTask())
    await bench.service.execute(tasks[1].id, StartTask(holder="h", worker="w"))
    await bench.caught_up(relay)
    await bench.redis.flushall()

    await bench.eventually_entries(relay, [entry(task) for task in tasks[2:]])
    await bench.eventually_entries(relay, [entry(mail)], queue="mail")
    assert bench.status.refused == 0, "noticed by looking, not by being refused"


async def test_a_loss_between_two_looks_is_noticed_by_the_script(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LOOK_SECONDS", 3600.0)
    task = await bench.service.create()
    leading = await bench.started()
    await bench.redis.flushall()
    new = await bench.service.create()
    await bench.caught_up(leading)

    assert await bench.entries() == [entry(task), entry(new)]
    assert bench.status.refused == 1


async def test_a_redis_that_was_rolled_back_gets_what_it_lacks(bench: Bench) -> None:
    tasks = await many(bench.service, 6)
    relay = await bench.started()
    stream = stream_key("default", "sum", "normal")
    await bench.redis.delete(stream)
    for task in tasks[:2]:
        await bench.service.publish(bench.redis, task)
    await bench.redis.set(position_key("default"), f"{tasks[1].position}.{await tag(bench)}")

    await bench.eventually_entries(relay, [entry(task) for task in tasks])


async def test_a_queue_longer_than_a_chunk_is_filled_in_order_while_others_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "CHUNK", 10)
    tasks = await many(bench.service, 95)
    relay = await bench.relay()
    while not relay.live.is_set():
        await relay.turn()
    mail = await bench.service.create(queue="mail")
    for _ in range(3):
        await relay.turn()
    assert await bench.entries(queue="mail") == [entry(mail)]
    assert 0 < len(await bench.entries()) < len(tasks)
    late = await bench.service.create()
    await bench.caught_up(relay)

    assert await bench.entries() == [entry(task) for task in [*tasks, late]]
    assert (bench.status.refused, bench.status.published) == (0, 97)


async def test_a_batch_larger_than_a_script_is_split(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "CHUNK", 10)
    await many(bench.service, 1)
    relay = await bench.started()
    tasks = await many(bench.service, 25)
    await relay.turn()

    assert (await bench.entries())[1:] == [entry(task) for task in tasks]


async def test_a_stale_relay_is_refused_and_harmless(bench: Bench) -> None:
    first = await bench.service.create()
    stale = await bench.started()
    second = await bench.service.create()
    await bench.started()
    third = await bench.service.create()
    published = bench.status.published
    with pytest.raises(CheckpointConflict):
        await stale.turn()

    assert bench.status.refused == 1
    assert (bench.status.published, await bench.checkpoint()) == (published, 2)
    leading = await bench.started()
    assert await bench.entries() == [entry(first), entry(second), entry(third)]
    await bench.caught_up(leading)
    assert bench.status.refused == 1


async def test_a_stale_relay_cannot_move_a_position_back(bench: Bench) -> None:
    await bench.service.create()
    stale = await bench.started()
    await bench.service.create()
    await bench.started()
    position = await bench.position()
    for _ in range(2):
        with pytest.raises(CheckpointConflict):
            await stale.turn()

    assert await bench.position() == position


async def test_what_another_relay_published_meanwhile_moves_no_position_back(bench: Bench) -> None:
    await many(bench.service, 5)
    relay = await bench.started()
    rows = await bench.store.queued_after("default", 0, 4)
    late = publisher.Publisher(bench.redis, await tag(bench), bench.status)
    await late.look(["default"], bench.service.log.head, 4)
    await late.catch_up(bench.store, 4)
    await late.offer(rows)

    assert await bench.position() == f"5.{await tag(bench)}"
    assert (bench.status.published, bench.status.refused) == (5, 0)
    await bench.caught_up(relay)


async def test_another_log_begins_with_empty_streams(bench: Bench) -> None:
    """A restore: a new tag, and positions that the streams have passed already."""
    await many(bench.service, 3)
    await bench.started()
    await bench.redis.set(position_key("default"), "2.zzzzzzzz")
    await bench.redis.xadd(stream_key("default", "sum", "low"), {"task": str(new_task_id())}, id="900-1")
    await bench.redis.sadd(streams_key("default"), stream_key("default", "sum", "low"))
    await bench.sql("update taskledger.log_identity set tag = 'aaaaaaaa'")
    await bench.sql("delete from taskledger.task_events where notification_id > 2")
    later = await bench.started()
    low = await bench.service.create(priority="low")
    await bench.caught_up(later)

    assert [name for name, _ in await bench.entries()] == ["1-1", "2-1"]
    assert await bench.entries(priority="low") == [entry(low)]
    assert await bench.position() == "3.aaaaaaaa"
    assert len(await bench.table()) == 3


async def test_a_position_above_the_head_tells_that_the_log_lost_its_end(bench: Bench) -> None:
    """Of a log that was restored, with nobody left who has seen it: until it has a new tag it is not
    followed, and Redis stays as it is."""
    task = await bench.service.create()
    stream = stream_key("default", "sum", "normal")
    ghost = ("70-1", str(new_task_id()))
    await bench.redis.xadd(stream, {"task": ghost[1]}, id=ghost[0])
    await bench.redis.sadd(streams_key("default"), stream)
    await bench.redis.set(position_key("default"), f"70.{await tag(bench)}")
    store = bench.store
    with pytest.raises(LogRewound, match="the log ends at 1"):
        await bench.caught_up(await bench.relay(store))

    assert await bench.entries() == [ghost]
    with pytest.raises(LogRewound, match="taskledger restored"):
        await take_up(store)
    await bench.sql("update taskledger.log_identity set tag = 'aaaaaaaa'")
    await bench.started()
    assert await bench.entries() == [entry(task)]


async def test_a_log_that_gets_another_tag_ends_the_term(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LOOK_SECONDS", 0.0)
    leading = await bench.started()
    await bench.sql("update taskledger.log_identity set tag = 'aaaaaaaa'")
    with pytest.raises(CheckpointConflict, match="another tag"):
        await leading.turn()


async def test_a_log_cut_short_under_its_old_tag_is_not_followed(bench: Bench) -> None:
    await many(bench.service, 3)
    await bench.started()
    await bench.sql("delete from taskledger.task_events where notification_id > 1")

    with pytest.raises(LogRewound, match="the log ends at 1 and was read up to 3"):
        await take_up(bench.store)


@pytest.mark.parametrize("key", [position_key("default"), streams_key("default")])
async def test_a_key_of_ours_that_somebody_overwrote_is_made_anew(bench: Bench, key: str) -> None:
    first = await bench.service.create()
    relay = await bench.started()
    await bench.redis.delete(key)
    await bench.redis.lpush(key, "surprise")
    second = await bench.service.create()
    await relay.turn()

    await bench.eventually_entries(relay, [entry(first), entry(second)])


async def test_a_stream_that_somebody_overwrote_is_made_anew(bench: Bench) -> None:
    first = await bench.service.create()
    relay = await bench.started()
    await bench.redis.set(stream_key("default", "sum", "normal"), "surprise")
    second = await bench.service.create()
    await relay.turn()

    await bench.eventually_entries(relay, [entry(first), entry(second)])


async def test_a_full_redis_delays_dispatch_and_the_fold_goes_on(bench: Bench) -> None:
    first = await bench.service.create()
    relay = await bench.started()
    await bench.redis.config_set("maxmemory", "1")
    try:
        second = await bench.service.create()
        await relay.turn()
        assert bench.status.waiting_for["redis"] == "OutOfMemoryError"
        assert relay.folded == 2
        third = await bench.service.create()
        await bench.caught_up(relay)
        assert (await bench.checkpoint(), await bench.entries()) == (3, [entry(first)])
    finally:
        await bench.redis.config_set("maxmemory", "0")

    await bench.eventually_entries(relay, [entry(task) for task in (first, second, third)])
    assert bench.status.ready


async def test_a_script_whose_reply_is_lost_publishes_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await bench.service.create()
    relay = await bench.started()
    evaluate: Callable[..., Awaitable[Any]] = bench.redis.evalsha

    async def losing_the_reply(*arguments: Any) -> int:
        await evaluate(*arguments)
        raise RedisConnectionError("the reply is lost")

    second = await bench.service.create()
    with monkeypatch.context() as patch:
        patch.setattr(bench.redis, "evalsha", losing_the_reply)
        await relay.turn()

    await bench.eventually_entries(relay, [entry(first), entry(second)])


@pytest.mark.parametrize(
    ("topic", "state"),
    [("TaskTeleported", b"{}"), ("TaskStarted", b"\xff not JSON"), ("TaskFailed", b"[]")],
)
async def test_a_poison_event_does_not_stop_dispatch(bench: Bench, topic: str, state: bytes) -> None:
    relay = await bench.started()
    poisoned = await bench.service.create()
    await bench.append_raw(poisoned, topic, state)
    good = await bench.service.create()
    await bench.caught_up(relay)

    assert entry(good) in await bench.entries()
    assert (await bench.checkpoint(), bench.status.poison) == (3, 1)
    table = await bench.table()
    assert (table[poisoned.id]["state"], table[poisoned.id]["unreadable"]) == ("queued", True)


async def test_topics_of_other_aggregates_are_passed_over(bench: Bench) -> None:
    await bench.service.commands.set_paused("mail", paused=True)
    await bench.started()

    assert (await bench.checkpoint(), bench.status.poison, await bench.table()) == (1, 0, {})


async def test_a_release_that_can_read_an_event_reads_it_at_its_start(bench: Bench) -> None:
    waiting, done = await bench.service.create(), await bench.service.create()
    still = await bench.service.create()
    for task in (waiting, done, still):
        await bench.append_raw(task, "TaskTeleported")
    await bench.started()
    assert all(row["unreadable"] for row in (await bench.table()).values())
    await bench.sql(
        "update taskledger.task_events set topic = 'TaskQueued', state = %s where originator_id = %s"
        " and originator_version = 2",
        (b'{"event_uid":"u","reason":"lost"}', waiting.id),
    )
    await bench.sql(
        "update taskledger.task_events set topic = 'TaskCancelled', state = %s where originator_id = %s"
        " and originator_version = 2",
        (b'{"event_uid":"u"}', done.id),
    )
    await bench.started()

    table = await bench.table()
    assert set(table) == {waiting.id, still.id}
    assert (table[waiting.id]["version"], table[waiting.id]["unreadable"]) == (2, False)


STEPS = (
    StartTask(holder="h", worker="w"),
    StartTask(holder=None, worker="w"),
    CompleteTask(1, {}),
    FailTask(1, cause="lost"),
    FailTask(2, cause="error"),
    CancelTask(),
    RequeueTask(),
)


@pytest.mark.parametrize("seed", range(3))
async def test_outstanding_equals_the_log_for_any_history_in_any_batches(
    bench: Bench, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(relay, "BATCH", draw.choice([1, 3, 17, 2_000]))
    leading = await bench.started()
    tasks: list[UUID] = []
    for _ in range(60):
        if len(tasks) < 8 or draw.random() < 0.1:
            tasks.append((await bench.service.create(priority=draw.choice(["high", "low"]))).id)
        else:
            await attempt(bench, draw.choice(tasks), draw.choice(STEPS))
        if draw.random() < 0.2:
            await bench.caught_up(leading)
        if draw.random() < 0.05:
            leading = await bench.started()
    await bench.caught_up(leading)

    found = {task: row_as_tuple(row) for task, row in (await bench.table()).items()}
    assert found == await bench.expected_table(tasks)


async def attempt(bench: Bench, task: UUID, command: TaskCommand) -> None:
    state = await bench.service.state(task)
    if isinstance(command, FailTask) and state.queued_position % 2:
        command = ReplaceEntry(state.queued_position)
    try:
        await bench.service.execute(task, command)
    except CommandRejected:
        return  # what a task refuses leaves no event


async def test_large_payloads_make_small_batches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "BATCH_BYTES", 10_000)
    leading = await bench.started()
    large = await bench.service.create(payload={"text": "x" * 4_000})
    await bench.caught_up(leading)
    tasks = [await bench.service.create() for _ in range(6)]
    await leading.turn()
    assert await bench.entries() == [entry(task) for task in [large, *tasks[:2]]]
    await bench.caught_up(leading)
    assert await bench.entries() == [entry(task) for task in [large, *tasks]]
