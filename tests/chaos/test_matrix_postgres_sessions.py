"""Single sessions of PostgreSQL fall silent, sit on something, or get into each other's way."""

import asyncio
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from redis.asyncio import Redis

from command_side import listener
from events.errors import StoreUnavailable
from taskledger.postgres import connect_sync
from tests.chaos.inprocess import System
from tests.chaos.store import Store, command_api
from tests.contract.faults import APPEND_LOCK
from tests.integration.command_api import SUM, problem
from tests.integration.projection import following
from tests.integration.query import query_api
from tests.support import Service, eventually

pytestmark = pytest.mark.xdist_group("chaos-postgres")


@pytest.fixture
def dsn(store: Store) -> str:
    """What the service is built on."""
    return store.direct


@pytest.fixture
async def relaying(service: Service, redis_url: str) -> AsyncIterator[System]:
    """A leading dispatcher."""
    system = System(service, redis_url)
    await system.dispatcher()
    yield system
    await system.stop()


async def published(system: System) -> None:
    """A new task, and its entry."""
    before = system.dispatchers[0].published
    await system.service.create()

    async def there() -> bool:
        return system.dispatchers[0].published > before

    await eventually(there, "the entry")


async def test_postgres_listener_suspended(
    store: Store, relaying: System, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sessions that listen stand still -> followers go on by polling, notice it, and listen anew."""
    monkeypatch.setattr(listener, "CHECK_SECONDS", 0.5)
    monkeypatch.setattr("query_side.listener.CHECK_SECONDS", 0.5)
    names = ("taskledger-dispatcher-listen", "taskledger-query-listen")
    async with query_api(store.dsn) as reads:

        async def listening() -> list[int]:
            found = [store.idle_sessions(name) for name in names]
            return [pids[0] for pids in found if len(pids) == 1]

        async def both() -> list[int]:
            return pids if len(pids := await listening()) == 2 else []

        silent: list[int] = await eventually(both, "both listeners")
        store.servers.suspend_backends(silent)
        await published(relaying)
        with following(store.direct):
            task = await relaying.service.create()
            token = f"{task.position}.{await relaying.service.log.tag()}"
            answer = await reads.get(f"/tasks/{task.id}?min_position={token}")
            assert answer.status_code == 200

        async def replaced() -> bool:
            return all(set(store.sessions(name)) - set(silent) for name in names)

        await eventually(replaced, "listeners on other sessions", within=20)


@pytest.mark.faults
@pytest.mark.parametrize("process", ["command-api", "query-api"])
async def test_postgres_pooled_sessions_suspended(store: Store, process: str) -> None:
    """Sessions of a pool stand still, and their sockets stay open -> they are given up at the deadline and
    replaced: nobody waits for them a second time."""
    async with command_api(store) as client, query_api(store.dsn) as reads:
        with following(store.direct):
            task = await client.created()

            async def works() -> bool:
                if process == "query-api":
                    return (await reads.get(f"/tasks/{task}")).status_code == 200
                return (await client.post(f"/tasks/{task}/heartbeat", {"attempt": 1})).status_code == 409

            await eventually(works)
            store.servers.suspend_backends(store.sessions(f"taskledger-{process}"))
            await asyncio.gather(*(works() for _ in range(20)))
            begun = time.monotonic()
            await eventually(works, "an answer", within=8)
            assert time.monotonic() - begun < 2.5


async def test_postgres_transaction_left_open(store: Store, relaying: System, redis: Redis) -> None:
    """One of our sessions sits in a transaction, on the append lock even, and an administrator's on an old
    snapshot -> ours is ended after five seconds and the appends go on; nothing waits for the other."""
    with psycopg.connect(store.direct) as administrator:
        administrator.execute("set transaction isolation level repeatable read")
        administrator.execute("select count(*) from taskledger.task_events")
        await published(relaying)

        with connect_sync(store.direct, name="frozen", autocommit=False) as frozen:
            frozen.execute("select pg_advisory_xact_lock(%s)", (APPEND_LOCK,))
            begun = time.monotonic()
            await eventually(lambda: stored(relaying), "an append", within=7)
            assert time.monotonic() - begun > 4
            with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
                frozen.execute("select 1")
        await published(relaying)
        assert administrator.execute("select count(*) from taskledger.task_events").fetchone() == (0,)


async def stored(system: System) -> bool:
    try:
        await system.service.create()
    except StoreUnavailable:
        return False
    return True


async def test_postgres_deadlock(store: Store) -> None:
    """An append and an administrator wait for each other, and the append is the victim -> it is tried again
    and stored once."""
    async with command_api(store) as client:
        with psycopg.connect(store.direct) as administrator:
            administrator.execute("set local deadlock_timeout = '1min'")
            administrator.execute("lock table taskledger.task_events in share mode")
            submitted = asyncio.create_task(client.submit())

            async def waits() -> bool:
                return bool(
                    store.sql(
                        "select 1 from pg_stat_activity where datname = %s and wait_event_type = 'Lock'"
                        " and application_name = 'taskledger-command-api-append'",
                        store.name,
                    )
                )

            await eventually(waits, "an append that waits")
            await asyncio.to_thread(
                administrator.execute, "select pg_advisory_xact_lock(%s)", (APPEND_LOCK,)
            )
            assert not submitted.done()
        answer = await submitted
    assert answer.status_code == 201
    assert store.stored(answer.json()["id"]) == ["TaskCreated"]


@pytest.mark.parametrize(("failures", "status"), [(3, 201), (4, 503)])
async def test_postgres_serialization_failure(store: Store, failures: int, status: int) -> None:
    """The server rolls an append back, for others' sake -> three more tries, then 503; all of it is stored
    or none."""
    async with command_api(store) as client:
        store.sql("create sequence tries")
        store.sql("grant usage on sequence tries to public")
        store.sql(
            "create function fail() returns trigger language plpgsql as $$ begin"
            f" if nextval('public.tries') <= {failures} then"
            " raise exception 'try again' using errcode = 'serialization_failure'; end if;"
            " return null; end $$"
        )
        store.sql("create trigger fail after insert on taskledger.task_events execute function fail()")
        before = len(store.sql("select 1 from taskledger.task_events"))
        answer = await client.post("/tasks/batch", {"tasks": [SUM] * 3})
        assert answer.status_code == status, answer.text
        assert store.sql("select last_value from tries") == [(4,)]
        grown = len(store.sql("select 1 from taskledger.task_events")) - before
        assert grown == (3 if status == 201 else 0)
        if status == 503:
            problem(answer, 503, "store_unavailable")
        assert (await client.submit()).status_code == 201


MAINTENANCE = {
    "vacuum": "vacuum (analyze) taskledger.task_events",
    # What anti-wraparound does, as slowly as a large table makes it.
    "freeze": "vacuum (freeze, disable_page_skipping) taskledger.task_events",
    "index": "create index concurrently beside on taskledger.task_events (recorded_at)",
    "reindex": "reindex index concurrently taskledger.task_events_position",
}
SLOW = "-c vacuum_cost_delay=20ms -c vacuum_cost_limit=1 -c vacuum_cost_page_hit=1"


@pytest.mark.parametrize("name", MAINTENANCE)
async def test_postgres_maintenance_of_the_log(store: Store, name: str) -> None:
    """The log is vacuumed or gets an index meanwhile -> appends go on."""
    async with command_api(store) as client:
        tasks = {"tasks": [SUM] * 1_000}
        for _ in range(2):
            assert (await client.post("/tasks/batch", tasks)).status_code == 201
        with (
            psycopg.connect(store.direct) as reader,
            psycopg.connect(store.direct, autocommit=True, options=SLOW) as administrator,
        ):
            # An index waits for snapshots older than itself: it is under way as long as this one is.
            reader.execute("set transaction isolation level repeatable read")
            reader.execute("select 1 from taskledger.task_events limit 1")
            work = asyncio.create_task(asyncio.to_thread(administrator.execute, MAINTENANCE[name].encode()))

            async def under_way() -> bool:
                views = ("pg_stat_progress_vacuum", "pg_stat_progress_create_index")
                return any(
                    store.sql(f"select 1 from {view} where datname = %s", store.name) for view in views
                )

            await eventually(under_way, "the maintenance")
            for _ in range(20):
                assert (await client.submit()).status_code == 201
            assert not work.done()
            reader.rollback()
            administrator.cancel_safe() if name in ("vacuum", "freeze") else None
            await asyncio.gather(work, return_exceptions=True)
