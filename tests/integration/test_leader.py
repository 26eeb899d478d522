"""Leadership on a real server: one at a time, and none that nobody hears of."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from events.connections import sever
from taskledger import leader as module
from taskledger.leader import Connect, Leader, leader_connect, leadership
from taskledger.postgres import SESSION, connect
from tests.support import eventually

KEY = 4711


class Campaign:
    """Candidates of one test, all released at its end."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.stop = asyncio.Event()
        self.told: list[tuple[str, bool]] = []
        self.leaders: list[Leader] = []
        self.waits: list[asyncio.Task[bool]] = []

    def candidate(self, connect: Connect | None = None) -> Leader:
        leader = Leader(
            connect or leader_connect(self.dsn, name="test"),
            KEY,
            waiting=lambda reason, away: self.told.append((reason, away)),
        )
        self.leaders.append(leader)
        return leader

    def standby(self, leader: Leader) -> "asyncio.Task[bool]":
        wait = asyncio.create_task(leader.acquire(self.stop))
        self.waits.append(wait)
        return wait

    async def backend(self) -> int:
        """Process id of the server's side of whoever leads."""
        async with await connect(self.dsn, name="test") as connection:
            cursor = await connection.execute(
                "select pid from pg_locks where locktype = 'advisory' and objid = %s and granted", (KEY,)
            )
            row = await cursor.fetchone()
            assert row is not None, "nobody leads"
            return int(row[0])

    async def end(self) -> None:
        self.stop.set()
        await asyncio.gather(*self.waits)
        for leader in self.leaders:
            await leader.release()


@pytest.fixture
async def campaign(dsn: str) -> AsyncIterator[Campaign]:
    campaign = Campaign(dsn)
    yield campaign
    await campaign.end()


async def test_one_leads_and_the_other_follows_when_it_goes(campaign: Campaign) -> None:
    first, second = campaign.candidate(), campaign.candidate()
    assert await first.acquire(campaign.stop)
    waiting = campaign.standby(second)

    async def told() -> bool:
        return campaign.told == [("another process leads", False)]

    await eventually(told)
    assert not waiting.done()
    await first.release()

    assert await waiting
    assert not first.lost.is_set()
    assert not second.lost.is_set()


async def test_a_leader_whose_session_was_ended_knows_and_is_replaced(campaign: Campaign) -> None:
    first, second = campaign.candidate(), campaign.candidate()
    assert await first.acquire(campaign.stop)
    waiting = campaign.standby(second)
    async with await connect(campaign.dsn, name="test") as connection:
        await connection.execute("select pg_terminate_backend(%s)", (await campaign.backend(),))

    await asyncio.wait_for(first.lost.wait(), 10)
    assert await waiting


async def test_a_frozen_leader_is_replaced_and_knows_when_it_wakes(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not pinging for longer than the server waits is all that can be seen of a frozen process."""
    options = f"{SESSION} -c idle_session_timeout=200ms"
    asleep = campaign.candidate(lambda: connect(campaign.dsn, name="test", options=options))
    monkeypatch.setattr(module, "PING_SECONDS", 3.0)
    assert await asleep.acquire(campaign.stop)
    assert await campaign.backend(), "by now it has fallen asleep"
    monkeypatch.setattr(module, "PING_SECONDS", 0.1)
    awake = campaign.candidate()

    assert await campaign.standby(awake)
    assert not asleep.lost.is_set(), "it sleeps still"
    await asyncio.wait_for(asleep.lost.wait(), 10)
    assert not awake.lost.is_set()


async def test_sessions_are_ended_by_the_server_after_five_silent_seconds(dsn: str) -> None:
    async with await leader_connect(dsn, name="test")() as connection:
        cursor = await connection.execute("show idle_session_timeout")
        assert await cursor.fetchone() == ("5s",)


async def test_a_ping_without_an_answer_ends_the_leadership(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PING_SECONDS", 0.1)
    leader = campaign.candidate()
    assert await leader.acquire(campaign.stop)
    backend = await campaign.backend()
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    os.kill(backend, signal.SIGSTOP)
    try:
        await asyncio.wait_for(leader.lost.wait(), 10)
        await leader.release()
    finally:
        os.kill(backend, signal.SIGCONT)


async def test_a_standby_stops_when_told(campaign: Campaign) -> None:
    assert await campaign.candidate().acquire(campaign.stop)
    waiting = campaign.standby(campaign.candidate())
    campaign.stop.set()
    assert not await waiting


async def test_a_cancelled_campaign_leaves_no_session(campaign: Campaign) -> None:
    async def lead() -> None:
        async with leadership(leader_connect(campaign.dsn, name="gone"), KEY, campaign.stop) as leader:
            assert leader is not None
            await leader.lost.wait()

    leading = asyncio.create_task(lead())

    async def leads() -> bool:
        return await campaign.backend() > 0

    await eventually(leads)
    leading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leading
    assert await campaign.standby(campaign.candidate())


async def test_a_database_that_is_away_is_waited_for(campaign: Campaign) -> None:
    tries = 0

    async def unreachable_at_first() -> AsyncConnection[TupleRow]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise psycopg.OperationalError("the server is away")
        return await connect(campaign.dsn, name="test")

    assert await campaign.candidate(unreachable_at_first).acquire(campaign.stop)
    assert campaign.told == [("PostgreSQL does not answer (OperationalError)", True)]


async def test_severing_wakes_whoever_waits(dsn: str) -> None:
    connection = await connect(dsn, name="test")
    waiting = asyncio.create_task(connection.execute("select pg_sleep(9)"))

    async def active() -> bool:
        return connection.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE

    await eventually(active)
    sever(connection)
    with pytest.raises(psycopg.OperationalError):
        await waiting
    await connection.close()
    sever(connection)
