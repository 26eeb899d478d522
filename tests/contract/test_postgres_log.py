"""What only a real log can get wrong: order among concurrent writers, lost connections, deadlines,
size, maintenance beside it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from itertools import pairwise

import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from events.append import AppendCommand, Appended, Conflict, RecordedEvent, StreamAppend
from events.deadline import after
from events.errors import StoreUnavailable
from events.ids import new_task_id
from events.postgres_log import PostgresLog
from taskledger.postgres import Pool, connect
from tests.chaos.proxy import Proxy
from tests.contract.builders import batch, command, idempotency_key, stored_event
from tests.contract.faults import APPEND_LOCK
from tests.support import eventually


@pytest.fixture
async def holder(dsn: str) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """A session that holds the append lock until it unlocks it."""
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("select pg_advisory_lock(%s)", (APPEND_LOCK,))
        yield connection


async def unlock(holder: AsyncConnection[TupleRow]) -> None:
    await holder.execute("select pg_advisory_unlock(%s)", (APPEND_LOCK,))


async def waiting_append(connection: AsyncConnection[TupleRow]) -> int | None:
    """The backend of an append that waits for the lock."""
    cursor = await connection.execute(
        "select pid from pg_stat_activity where wait_event_type = 'Lock' and wait_event = 'advisory'"
        " and datname = current_database()"
    )
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def test_a_reader_never_finds_an_event_below_what_it_has_read(dsn: str, pool: Pool) -> None:
    writers, appends, total = 8, 40, 8 * 40 * 2
    seen: list[list[RecordedEvent]] = [[], [], []]

    async def write() -> None:
        log = PostgresLog(pool, lambda: connect(dsn, name="test-writer"))
        for _ in range(appends):
            (outcome,) = await log.append([command(count=2)], deadline=after(20))
            assert isinstance(outcome, Appended)
        await log.close()

    async def tail(events: list[RecordedEvent]) -> None:
        reader = PostgresLog(pool, lambda: connect(dsn, name="test-reader"))
        while len(events) < total:
            position = events[-1].id if events else 0
            events.extend(await reader.read_after(position, limit=37))

    async with await AsyncConnection.connect(dsn) as bystander:
        # Positions drawn outside the lock would wait for no other transaction, this one included.
        await bystander.execute("insert into taskledger.leases (holder, lease_seconds) values ('x', 1)")
        await asyncio.gather(*(write() for _ in range(writers)), *(tail(events) for events in seen))
        await bystander.rollback()

    for events in seen:
        assert [e.id for e in events] == list(range(1, total + 1))
        assert [e.recorded_at for e in events] == sorted(e.recorded_at for e in events)


async def test_appends_of_one_call_lie_together_among_concurrent_writers(dsn: str, pool: Pool) -> None:
    async def write() -> list[Appended]:
        log = PostgresLog(pool, lambda: connect(dsn, name="test-writer"))
        outcomes = [await log.append([batch(20), command(count=3)], deadline=after(20)) for _ in range(5)]
        await log.close()
        return [o for pair in outcomes for o in pair if isinstance(o, Appended)]

    ranges = sorted(
        (o.first_position, o.last_position)
        for appended in await asyncio.gather(*(write() for _ in range(4)))
        for o in appended
    )
    assert len(ranges) == 40
    assert ranges[0][0] == 1
    assert all(last + 1 == first for (_, last), (first, _) in pairwise(ranges))


async def test_of_many_writers_of_one_version_one_wins(dsn: str, pool: Pool) -> None:
    task = new_task_id()

    async def write() -> type:
        log = PostgresLog(pool, lambda: connect(dsn, name="test-writer"))
        (outcome,) = await log.append([command(of=task)], deadline=after(20))
        await log.close()
        return type(outcome)

    outcomes = await asyncio.gather(*(write() for _ in range(8)))
    assert sorted(t.__name__ for t in outcomes) == ["Appended"] + ["Conflict"] * 7


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    found = conninfo_to_dict(dsn)
    proxy = Proxy(f"{found['host']}/.s.PGSQL.{found['port']}")
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture
async def cut_log(dsn: str, proxy: Proxy, pool: Pool) -> AsyncIterator[PostgresLog]:
    """Its appends pass the proxy; its reads do not."""
    through = make_conninfo(dsn, host="127.0.0.1", port=proxy.port)
    log = PostgresLog(pool, lambda: connect(through, name="test-cut"))
    await log.append([command()], deadline=after(5))  # prepares the statement: one reply from now on
    yield log
    await log.close()


async def test_an_append_whose_reply_was_lost_is_recognised(cut_log: PostgresLog, proxy: Proxy) -> None:
    ours = command(count=2)
    proxy.swallow_reply(when=b"taskledger-test-cut")
    (outcome,) = await cut_log.append([ours], deadline=after(5))
    assert proxy.swallowed == 1
    assert isinstance(outcome, Appended)
    stored = await cut_log.read_after(1, limit=10)
    assert [(e.id, e.state) for e in stored] == [
        (2, ours.streams[0].events[0].state),
        (3, ours.streams[0].events[1].state),
    ]
    assert (outcome.first_position, outcome.last_position) == (2, 3)
    assert outcome.recorded_at == stored[0].recorded_at


async def test_each_command_of_a_group_whose_reply_was_lost_is_told_the_truth(
    cut_log: PostgresLog, proxy: Proxy
) -> None:
    taken = new_task_id()
    used = idempotency_key("used")
    await cut_log.append([command(of=taken), command(key=used)], deadline=after(5))
    group = [
        command(),
        command(of=taken),
        command(key=idempotency_key("fresh")),
        command(key=used),
        batch(3),
    ]
    proxy.swallow_reply(when=b"taskledger-test-cut")
    outcomes = await cut_log.append(group, deadline=after(5))
    assert [type(o).__name__ for o in outcomes] == [
        "Appended",
        "Conflict",
        "Appended",
        "Replayed",
        "Appended",
    ]
    positions = [(o.first_position, o.last_position) for o in outcomes if isinstance(o, Appended)]
    assert positions == [(4, 4), (5, 5), (6, 8)]
    assert await cut_log.head() == 8


async def test_an_append_whose_backend_is_ended_before_it_stored_is_stored_once(
    holder: AsyncConnection[TupleRow], postgres_log: PostgresLog
) -> None:
    appending = asyncio.create_task(postgres_log.append([command()], deadline=after(10)))
    first = await eventually(lambda: waiting_append(holder), "the append to wait")
    await holder.execute("select pg_terminate_backend(%s)", (first,))

    async def another() -> bool:
        return await waiting_append(holder) not in {None, first}

    await eventually(another, "the second try to wait")
    await unlock(holder)
    (outcome,) = await appending
    assert isinstance(outcome, Appended)
    assert await postgres_log.head() == 1


async def test_another_writers_event_after_a_lost_connection_is_a_conflict(
    holder: AsyncConnection[TupleRow], postgres_log: PostgresLog, dsn: str, pool: Pool
) -> None:
    task = new_task_id()
    rival = PostgresLog(pool, lambda: connect(dsn, name="test-rival"))
    rivals = asyncio.create_task(rival.append([command(of=task)], deadline=after(10)))
    rival_pid = await eventually(lambda: waiting_append(holder), "the rival to wait")
    appending = asyncio.create_task(postgres_log.append([command(of=task)], deadline=after(10)))

    async def ours() -> int | None:
        cursor = await holder.execute(
            "select pid from pg_stat_activity where wait_event = 'advisory' and pid <> %s"
            " and datname = current_database()",
            (rival_pid,),
        )
        row = await cursor.fetchone()
        return None if row is None else int(row[0])

    await holder.execute("select pg_terminate_backend(%s)", (await eventually(ours),))
    await unlock(holder)
    assert isinstance((await rivals)[0], Appended)
    assert isinstance((await appending)[0], Conflict)
    await rival.close()


async def test_an_append_ends_at_its_deadline_while_another_session_holds_the_lock(
    holder: AsyncConnection[TupleRow], postgres_log: PostgresLog
) -> None:
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await postgres_log.append([command()], deadline=after(0.5))
    assert 0.4 < time.monotonic() - started < 3
    await unlock(holder)
    (outcome,) = await postgres_log.append([command()], deadline=after(5))
    assert isinstance(outcome, Appended)


async def test_a_cancelled_append_leaves_the_log_usable(
    holder: AsyncConnection[TupleRow], postgres_log: PostgresLog
) -> None:
    appending = asyncio.create_task(postgres_log.append([command()], deadline=after(10)))
    await eventually(lambda: waiting_append(holder), "the append to wait")
    appending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await appending
    await unlock(holder)
    (outcome,) = await postgres_log.append([command()], deadline=after(5))
    assert isinstance(outcome, Appended)


async def test_reads_do_not_wait_for_the_append_lock(
    holder: AsyncConnection[TupleRow], postgres_log: PostgresLog
) -> None:
    appending = asyncio.create_task(postgres_log.append([command()], deadline=after(10)))
    await eventually(lambda: waiting_append(holder), "the append to wait")
    assert await postgres_log.head() == 0
    await unlock(holder)
    await appending


async def test_reads_survive_the_loss_of_pooled_connections(postgres_log: PostgresLog, dsn: str) -> None:
    await postgres_log.append([command()], deadline=after(5))
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where application_name = 'taskledger-test' and datname = current_database()"
        )
    assert await postgres_log.head() == 1


async def test_twenty_megabytes_in_one_call(postgres_log: PostgresLog) -> None:
    state = bytes(5_000)
    streams = [
        StreamAppend(task, [stored_event(of=task, state=state)])
        for task in (new_task_id() for _ in range(4_000))
    ]
    (outcome,) = await postgres_log.append([AppendCommand(streams)], deadline=after(10))
    assert isinstance(outcome, Appended)
    assert await postgres_log.head() == 4_000


async def test_recorded_at_holds_still_while_the_servers_clock_runs_back(
    postgres_log: PostgresLog, dsn: str
) -> None:
    await postgres_log.append([command()], deadline=after(5))
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(
            "update taskledger.task_events set recorded_at = recorded_at + interval '1 hour'"
            " returning recorded_at"
        )
        row = await cursor.fetchone()
    assert row is not None
    ahead: datetime = row[0]
    (outcome,) = await postgres_log.append([command()], deadline=after(5))
    assert isinstance(outcome, Appended)
    assert outcome.recorded_at == ahead


async def test_appends_notify_the_new_head(postgres_log: PostgresLog, dsn: str) -> None:
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("listen taskledger_log")
        await postgres_log.append([command(count=3)], deadline=after(5))
        payloads = [n.payload async for n in connection.notifies(timeout=5, stop_after=1)]
    assert payloads == ["3"]


async def test_an_append_that_is_stored_whole_is_told_whole(postgres_log: PostgresLog, dsn: str) -> None:
    """And one of which a part is refused is not: its words would tell of what is not there."""
    good, other = command(), command()
    told = AppendCommand([good.streams[0]._replace(lane="high")])
    also = AppendCommand([other.streams[0]._replace(lane="low")])
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("listen taskledger_log")
        await postgres_log.append([told], deadline=after(5))
        await postgres_log.append([told, also], deadline=after(5))
        payloads = [n.payload async for n in connection.notifies(timeout=5, stop_after=2)]
    assert payloads == [f"1 1 1/default/sum/high/{good.streams[0].originator_id.hex} quiet", "2"]


async def test_vacuum_and_appends_do_not_wait_for_each_other(postgres_log: PostgresLog, dsn: str) -> None:
    async with await AsyncConnection.connect(dsn) as maintenance:
        # What VACUUM, ANALYZE and CREATE INDEX CONCURRENTLY hold while they run.
        await maintenance.execute("lock table taskledger.task_events in share update exclusive mode")
        (outcome,) = await postgres_log.append([command()], deadline=after(2))
        assert isinstance(outcome, Appended)

    async with await AsyncConnection.connect(dsn, autocommit=True) as maintenance:
        vacuum = asyncio.create_task(maintenance.execute("vacuum (analyze) taskledger.task_events"))
        appended = 0
        while not vacuum.done() or appended < 10:
            await postgres_log.append([command()], deadline=after(2))
            appended += 1
        await vacuum


async def test_vacuum_runs_while_an_append_is_under_way(
    holder: AsyncConnection[TupleRow], postgres_log: PostgresLog
) -> None:
    appending = asyncio.create_task(postgres_log.append([command()], deadline=after(10)))
    await eventually(lambda: waiting_append(holder), "the append to wait")
    await holder.execute("set lock_timeout = '2s'")
    await holder.execute("vacuum taskledger.task_events")
    await unlock(holder)
    assert isinstance((await appending)[0], Appended)
