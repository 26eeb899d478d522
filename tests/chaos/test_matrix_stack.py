"""The whole stack's row of the fault matrix: everything comes up at once, to a large backlog."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import psycopg
import pytest

from events.codec import EventMapper
from events.ids import new_task_id, new_uid
from events.migrate import migrate
from events.recorder import PostgresTaskRecorder
from events.records import EventRecord
from events.task_events import TaskCompleted, TaskCreated, TaskStarted
from taskledger.postgres import connect_sync
from tests.chaos import cluster as harness
from tests.chaos.cluster import COPIES, Cluster
from tests.chaos.servers import FAST, Servers
from tests.integration.projection import present
from tests.support import wait_until

WAITING: Final = 70_000
FINISHED: Final = 10_000
EVENTS: Final = WAITING + 3 * FINISHED
CHUNK: Final = 2_000
READY_SECONDS: Final = 30.0
DOWN_SECONDS: Final = 2.0
CONNECTIONS: Final = 4 + 4
"""Of one process: its pool, as the harness sets it, and beside it at the most those for appending,
listening, leading and leases."""
ATTEMPTS: Final = 10
"""To connect, of one process and second, while there is no server."""

pytestmark = pytest.mark.faults


class Census(threading.Thread):
    """The largest number of connections that there were at once."""

    def __init__(self, dsn: str) -> None:
        super().__init__(name="census", daemon=True)
        self.stop = threading.Event()
        self.highest = 0
        self._dsn = dsn

    def run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True, application_name="census") as connection:
            while not self.stop.wait(0.05):
                row = connection.execute(
                    "select count(*) from pg_stat_activity where application_name like 'taskledger-%'"
                ).fetchone()
                self.highest = max(self.highest, 0 if row is None else int(row[0]))


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    with Servers(tmp_path / "servers", postgres=FAST) as servers:
        migrate(servers.direct_dsn)
        _append_backlog(servers.direct_dsn)
        yield servers


def test_stack_cold_start_of_everything_on_a_large_backlog(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut all processes are up before their servers, to a log that nobody has read -> they
    wait without a storm; all are ready 30 s after the servers, on no more connections than they may."""
    cluster = Cluster(tmp_path / "cluster", dsn=servers.dsn, redis_url=servers.redis_url)
    monkeypatch.setattr(harness, "migrate_when_reachable", str)
    servers.crash_postgres()
    servers.kill_valkey()
    starting = threading.Thread(target=cluster.start, daemon=True)
    try:
        starting.start()
        wait_until(lambda: all(cluster.pid(name) for name in cluster.names), "all to run")
        before = servers.postgres_proxy.accepted
        threading.Event().wait(DOWN_SECONDS)
        attempts = servers.postgres_proxy.accepted - before

        servers.start_postgres()
        servers.start_valkey()
        began = time.monotonic()
        census = Census(servers.direct_dsn)
        census.start()
        starting.join(READY_SECONDS)
        ready = time.monotonic() - began
        assert not starting.is_alive(), [name for name in cluster.names if not cluster.ready(name)]
        wait_until(lambda: _projected(servers.direct_dsn), "the read table to have it all", within=20)
        wait_until(lambda: _completed(servers.direct_dsn) > FINISHED + 100, "work to be done", within=20)
        census.stop.set()
        census.join()

        processes = sum(COPIES.values())
        assert cluster.restarts.total() == 0, cluster.exit_codes
        assert attempts <= ATTEMPTS * DOWN_SECONDS * processes, attempts
        assert census.highest <= CONNECTIONS * processes, census.highest
        print(f"ready in {ready:.1f} s; {attempts=}; connections {census.highest}")
    finally:
        cluster.stop()


def _projected(dsn: str) -> bool:
    return present(dsn)[0].checkpoint >= EVENTS


def _completed(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "select count(*) from taskledger.task_events where topic = 'TaskCompleted'"
        ).fetchone()
    return 0 if row is None else int(row[0])


def _append_backlog(dsn: str) -> None:
    mapper = EventMapper()
    with closing(PostgresTaskRecorder(lambda: connect_sync(dsn, name="test"))) as recorder:
        for start in range(0, WAITING + FINISHED, CHUNK):
            records = [
                event
                for n in range(start, start + CHUNK)
                for event in _history(f"backlog {n}", finished=n < FINISHED)
            ]
            recorder.insert_events(
                [mapper.encode(record) for record in records], kind="mark", queue="default"
            )


def _history(mark: str, *, finished: bool) -> Sequence[EventRecord]:
    task = new_task_id()
    created = TaskCreated(
        originator_id=task,
        originator_version=1,
        event_uid=new_uid(),
        kind="mark",
        queue="default",
        payload={"mark": mark},
        max_attempts=5,
        timeout_seconds=30.0,
    )
    started = TaskStarted(
        originator_id=task,
        originator_version=2,
        event_uid=new_uid(),
        attempt=1,
        holder="gone",
        worker="gone",
    )
    done = TaskCompleted(
        originator_id=task,
        originator_version=3,
        event_uid=new_uid(),
        attempt=1,
        result=None,
        duration=0.1,
    )
    return (created, started, done) if finished else (created,)
