"""What follows the log beside PostgreSQL's own limits: queues of notifications, boots all at once."""

import threading
import time

import psycopg
import pytest

from events.statements import LOG_CHANNEL
from projector.runner import Projector
from tests.chaos.store import Store, command_api
from tests.integration.projection import following
from tests.support import wait_until

pytestmark = pytest.mark.xdist_group("chaos-postgres")


@pytest.mark.parametrize("stopped", ["client", "session"])
async def test_postgres_listener_stopped_under_load(store: Store, stopped: str) -> None:
    """A listener reads no more, or its session stands still, while very much is appended -> appends take as
    long as before, the queue of notifications stays all but empty, and no old snapshot is held."""
    async with command_api(store) as client:
        with (
            psycopg.connect(store.direct, autocommit=True) as deaf,
            psycopg.connect(store.direct, autocommit=True) as writer,
        ):
            deaf.execute(f"listen {LOG_CHANNEL}".encode())
            if stopped == "session":
                store.servers.suspend_backends([deaf.info.backend_pid])
            notify = "select pg_notify(%s, (%s + n)::text) from generate_series(1, 10000) n"
            for thousands in range(5):  # each more than the socket's buffer holds
                writer.execute(notify, [LOG_CHANNEL, thousands * 10_000])
            begun = time.monotonic()
            for _ in range(50):
                assert await client.accepts()
            assert time.monotonic() - begun < 10
            assert writer.execute("select pg_notification_queue_usage() < 0.01").fetchone() == (True,)
            held = "select coalesce(max(age(backend_xmin)), 0) from pg_stat_activity where pid = %s"
            assert store.sql(held, deaf.info.backend_pid)[0][0] < 100, held
            store.servers.resume_postgres()


def test_postgres_eight_projectors_boot_at_once(store: Store) -> None:
    """Everything starts in the same moment on a fresh database -> one generation of read tables, one that
    leads, and nobody that fails. (For `migrate` see tests/contract/test_schema.py.)"""
    stop = threading.Event()
    projectors = [Projector(store.dsn) for _ in range(8)]
    threads = [threading.Thread(target=projector.run, args=(stop,)) for projector in projectors]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(p.status().ready for p in projectors), "eight projectors to be ready")
        waiting = [p.status().waiting_for for p in projectors]
        assert (waiting.count(None), waiting.count("another projector leads")) == (1, 7)
        assert store.sql("select count(*) from taskledger.projection_generations") == [(1,)]
    finally:
        stop.set()
        for thread in threads:
            thread.join(15)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("silent", ["session", "network"])
def test_postgres_silent_under_the_projector(store: Store, silent: str) -> None:
    """The projector's session stands still, or the network swallows all that is said on it -> the projector
    gives the session up, says that it waits for PostgreSQL, and goes on with a new one."""
    with following(store.dsn, answer_seconds=1) as projector:
        wait_until(lambda: projector.status().ready, "a projector that follows")
        said = [projector.status()]

        def waits() -> bool:
            said.append(projector.status())
            return "PostgreSQL" in (said[-1].waiting_for or "")

        if silent == "session":
            store.servers.suspend_backends(store.sessions("taskledger-projector"))
        else:
            store.servers.postgres_proxy.black_hole(only=b"taskledger-projector")
        wait_until(waits, "it gives the session up")
        store.servers.postgres_proxy.heal()
        wait_until(lambda: projector.status().ready, "it has a new session", within=20)
        assert not said[-1].ready
        assert projector.heartbeat.alive()
