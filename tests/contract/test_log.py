"""What events.log promises, held against both of its adapters."""

from datetime import UTC, datetime, timedelta

import pytest

from events.append import AppendCommand, Appended, Conflict, Replayed, StreamAppend
from events.deadline import after
from events.errors import StoreUnavailable
from events.ids import new_task_id
from events.log import Log
from events.memory_log import MemoryLog
from tests.contract.builders import batch, command, idempotency_key, stored_event, stream


@pytest.fixture(params=["memory", "postgres"])
def log(request: pytest.FixtureRequest) -> Log:
    if request.param == "memory":
        return MemoryLog()
    postgres: Log = request.getfixturevalue("postgres_log")
    return postgres


async def test_the_first_event_has_position_one(log: Log) -> None:
    (outcome,) = await log.append([command()], deadline=after(5))
    assert isinstance(outcome, Appended)
    assert (outcome.first_position, outcome.last_position) == (1, 1)
    assert await log.head() == 1


async def test_an_empty_log(log: Log) -> None:
    assert await log.head() == 0
    assert await log.read_after(0, limit=10) == []
    assert await log.read_stream(new_task_id()) == []
    assert await log.read_streams([new_task_id()]) == {}
    assert await log.append([], deadline=after(5)) == []


async def test_each_command_of_a_call_has_its_own_positions(log: Log) -> None:
    outcomes = await log.append([command(count=2), command(), command(count=3)], deadline=after(5))
    positions = [(o.first_position, o.last_position) for o in outcomes if isinstance(o, Appended)]
    assert positions == [(1, 2), (3, 3), (4, 6)]


async def test_a_refused_command_fails_alone(log: Log) -> None:
    task = new_task_id()
    await log.append([command(of=task)], deadline=after(5))
    before, after_it = new_task_id(), new_task_id()
    outcomes = await log.append(
        [command(of=before), command(of=task), command(of=after_it)], deadline=after(5)
    )
    assert [type(o) for o in outcomes] == [Appended, Conflict, Appended]
    assert [e.originator_id for e in await log.read_after(1, limit=10)] == [before, after_it]
    assert await log.head() == 3


async def test_a_command_goes_on_where_its_stream_ended(log: Log) -> None:
    task = new_task_id()
    for first, count in ((1, 1), (2, 2), (4, 1)):
        (outcome,) = await log.append([command(first, count, of=task)], deadline=after(5))
        assert isinstance(outcome, Appended)
    assert [e.originator_version for e in await log.read_stream(task)] == [1, 2, 3, 4]


@pytest.mark.parametrize("first", [1, 2, 4, 5])
async def test_another_version_than_the_next_is_refused(log: Log, first: int) -> None:
    task = new_task_id()
    await log.append([command(1, 2, of=task)], deadline=after(5))
    (outcome,) = await log.append([command(first, of=task)], deadline=after(5))
    assert isinstance(outcome, Conflict)
    assert await log.head() == 2


async def test_a_stream_begins_at_its_first_version(log: Log) -> None:
    outcomes = await log.append([command(2), command(7), command(1), command(0)], deadline=after(5))
    assert [type(o) for o in outcomes] == [Conflict, Conflict, Appended, Appended]


@pytest.mark.parametrize("versions", [(1, 3), (2, 1), (1, 1), (1, 1, 3), (1, 2, 2)])
async def test_versions_of_a_command_follow_each_other_in_the_order_given(
    log: Log, versions: tuple[int, ...]
) -> None:
    task = new_task_id()
    events = [stored_event(version, of=task) for version in versions]
    refused = AppendCommand([StreamAppend(task, events)])
    outcomes = await log.append([refused, command()], deadline=after(5))
    assert [type(o) for o in outcomes] == [Conflict, Appended]
    assert await log.read_stream(task) == []


async def test_a_batch_is_stored_in_its_order(log: Log) -> None:
    tasks = batch(500)
    (outcome,) = await log.append([tasks], deadline=after(5))
    assert isinstance(outcome, Appended)
    assert (outcome.first_position, outcome.last_position) == (1, 500)
    stored = await log.read_after(0, limit=1_000)
    assert [e.originator_id for e in stored] == [s.originator_id for s in tasks.streams]


async def test_a_batch_is_stored_wholly_or_not_at_all(log: Log) -> None:
    task = new_task_id()
    await log.append([command(of=task)], deadline=after(5))
    spoiled = AppendCommand([*batch(10).streams, stream(of=task), *batch(10).streams])
    outcomes = await log.append([command(), spoiled, command()], deadline=after(5))
    assert [type(o) for o in outcomes] == [Appended, Conflict, Appended]
    assert await log.head() == 3
    assert len(await log.read_after(0, limit=100)) == 3


async def test_streams_of_a_command_may_alternate(log: Log) -> None:
    a, b = new_task_id(), new_task_id()
    streams = [stream(1, of=a), stream(1, of=b), stream(2, of=a), stream(2, of=b)]
    (outcome,) = await log.append([AppendCommand(streams)], deadline=after(5))
    assert isinstance(outcome, Appended)
    assert [e.originator_id for e in await log.read_after(0, limit=10)] == [a, b, a, b]


async def test_a_used_key_is_answered_with_its_first_positions(log: Log) -> None:
    await log.append([command()], deadline=after(5))
    key = idempotency_key(fingerprint=b"first")
    keyed = AppendCommand(batch(3).streams, key)
    (first,) = await log.append([keyed], deadline=after(5))
    assert isinstance(first, Appended)
    again = AppendCommand(batch(5).streams, idempotency_key(fingerprint=b"second"))
    outcomes = await log.append([command(), again, command()], deadline=after(5))
    assert isinstance(outcomes[1], Replayed)
    assert outcomes[1] == Replayed(first.first_position, first.last_position, b"first")
    assert [type(o) for o in outcomes] == [Appended, Replayed, Appended]
    assert await log.head() == 6


async def test_a_used_key_answers_before_a_conflict_does(log: Log) -> None:
    task = new_task_id()
    keyed = command(of=task, key=idempotency_key())
    await log.append([keyed], deadline=after(5))
    (outcome,) = await log.append([keyed], deadline=after(5))
    assert outcome == Replayed(1, 1, b"f")


async def test_a_refused_command_does_not_use_up_its_key(log: Log) -> None:
    task = new_task_id()
    await log.append([command(of=task)], deadline=after(5))
    (refused,) = await log.append([command(of=task, key=idempotency_key())], deadline=after(5))
    assert isinstance(refused, Conflict)
    (outcome,) = await log.append([command(key=idempotency_key())], deadline=after(5))
    assert isinstance(outcome, Appended)


async def test_keys_of_several_commands_keep_their_own_positions(log: Log) -> None:
    keyed = [
        command(key=idempotency_key("a")),
        command(count=2),
        AppendCommand(batch(4).streams, idempotency_key("b")),
        command(key=idempotency_key("a", tenant="another")),
    ]
    await log.append(keyed, deadline=after(5))
    again = [command(key=c.key) for c in keyed if c.key is not None]
    assert await log.append(again, deadline=after(5)) == [
        Replayed(1, 1, b"f"),
        Replayed(4, 7, b"f"),
        Replayed(8, 8, b"f"),
    ]


async def test_read_after_is_ordered_and_bounded(log: Log) -> None:
    await log.append([command() for _ in range(10)], deadline=after(5))
    assert [e.id for e in await log.read_after(0, limit=100)] == list(range(1, 11))
    assert [e.id for e in await log.read_after(4, limit=3)] == [5, 6, 7]
    assert [e.id for e in await log.read_after(4, limit=100, upto=6)] == [5, 6]
    assert [e.id for e in await log.read_after(6, limit=100, upto=6)] == []
    assert [e.id for e in await log.read_after(10, limit=100)] == []


async def test_read_streams_has_an_entry_for_each_known_stream(log: Log) -> None:
    a, b, unknown = new_task_id(), new_task_id(), new_task_id()
    await log.append([command(count=2, of=a), command(of=b), command()], deadline=after(5))
    await log.append([command(3, of=a)], deadline=after(5))
    streams = await log.read_streams([b, unknown, a])
    assert set(streams) == {a, b}
    assert [e.originator_version for e in streams[a]] == [1, 2, 3]
    assert [e.id for e in streams[a]] == [1, 2, 5]
    assert streams[b] == await log.read_stream(b)


async def test_what_is_read_is_what_was_appended(log: Log) -> None:
    appended = command(count=2)
    started = datetime.now(UTC) - timedelta(seconds=1)
    (outcome,) = await log.append([appended], deadline=after(5))
    assert isinstance(outcome, Appended)
    given = appended.streams[0]
    stored = await log.read_stream(given.originator_id)
    for event, expected in zip(stored, given.events, strict=True):
        assert event.originator_id == expected.originator_id
        assert event.originator_version == expected.originator_version
        assert (event.topic, event.state) == (expected.topic, expected.state)
        assert (event.tenant, event.kind, event.queue) == (given.tenant, given.kind, given.queue)
        assert event.recorded_at == outcome.recorded_at
        assert started < event.recorded_at < datetime.now(UTC) + timedelta(seconds=1)


async def test_recorded_at_never_falls(log: Log) -> None:
    for _ in range(20):
        await log.append([command(), command()], deadline=after(5))
    times = [e.recorded_at for e in await log.read_after(0, limit=100)]
    assert times == sorted(times)


async def test_the_tag_stays_the_same(log: Log) -> None:
    tag = await log.tag()
    await log.append([command()], deadline=after(5))
    assert await log.tag() == tag
    assert len(tag) == 8


async def test_a_deadline_that_has_passed(log: Log) -> None:
    with pytest.raises(StoreUnavailable):
        await log.append([command()], deadline=after(0))


async def test_in_memory_recorded_at_holds_still_while_the_clock_runs_back() -> None:
    times = iter([datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)])
    log = MemoryLog(clock=lambda: next(times))
    await log.append([command()], deadline=after(5))
    await log.append([command()], deadline=after(5))
    stored = await log.read_after(0, limit=10)
    assert [e.recorded_at.day for e in stored] == [2, 2]


async def test_in_memory_two_commands_of_a_call_may_not_touch_the_same() -> None:
    log = MemoryLog()
    task = new_task_id()
    with pytest.raises(ValueError, match="the same stream or key"):
        await log.append([command(of=task), command(2, of=task)], deadline=after(5))
    with pytest.raises(ValueError, match="the same stream or key"):
        await log.append(
            [command(key=idempotency_key()), command(key=idempotency_key())], deadline=after(5)
        )
    assert await log.head() == 0
