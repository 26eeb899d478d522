"""The library's own conformance cases for application recorders, and what ours promises beyond them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
from eventsourcing.application import Application
from eventsourcing.persistence import (
    ApplicationRecorder,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)

from events.append import RecordedEvent
from events.connections import Connect
from events.errors import ConfigurationError, SchemaNotReady, StoreUnavailable
from events.ids import new_task_id, new_uid
from events.recorder import Factory, PostgresTaskRecorder
from events.task_events import TaskCreated, TaskStarted
from taskledger.postgres import connect_sync
from tests.contract import conformance
from tests.contract.builders import stored_event
from tests.contract.faults import APPEND_LOCK, ReplyLost
from tests.support import wait_until

OpenRecorder = Callable[..., PostgresTaskRecorder]


def connector(dsn: str) -> Connect:
    return lambda: connect_sync(dsn, name="test-recorder")


@pytest.fixture
def open_recorder() -> Iterator[OpenRecorder]:
    """Makes recorders, and closes them after the test."""
    with ExitStack() as stack:

        def open_one(connect: Connect, budget_seconds: float = 5.0) -> PostgresTaskRecorder:
            recorder = PostgresTaskRecorder(connect, budget_seconds=budget_seconds)
            return stack.enter_context(closing(recorder))

        yield open_one


@pytest.fixture
def recorder(dsn: str, open_recorder: OpenRecorder) -> PostgresTaskRecorder:
    return open_recorder(connector(dsn))


class TestApplicationRecorder(conformance.ApplicationRecorderTestCase[ApplicationRecorder]):
    @pytest.fixture(autouse=True)
    def _database(self, dsn: str) -> None:
        self.dsn = dsn

    def create_recorder(self) -> ApplicationRecorder:
        recorder = PostgresTaskRecorder(connector(self.dsn))
        self.addCleanup(recorder.close)
        return recorder

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestNonInterleaving(conformance.NonInterleavingNotificationIDsBaseCase):
    @pytest.fixture(autouse=True)
    def _database(self, dsn: str) -> None:
        self.dsn = dsn

    def create_recorder(self) -> ApplicationRecorder:
        recorder = PostgresTaskRecorder(connector(self.dsn))
        self.addCleanup(recorder.close)
        return recorder


def test_twenty_megabytes_in_one_call(recorder: PostgresTaskRecorder) -> None:
    events = [stored_event(state=bytes([i % 256]) * 5_000) for i in range(4_000)]
    assert recorder.insert_events(events) == list(range(1, 4_001))
    stored = recorder.select_recorded(0, 5_000)
    assert [(e.originator_id, e.state) for e in stored] == [(e.originator_id, e.state) for e in events]


def test_positions_follow_the_order_given_across_interleaved_streams(
    recorder: PostgresTaskRecorder,
) -> None:
    a, b = new_task_id(), new_task_id()
    events = [stored_event(1, of=a), stored_event(1, of=b), stored_event(2, of=a), stored_event(2, of=b)]
    assert recorder.insert_events(events) == [1, 2, 3, 4]
    assert [(e.originator_id, e.originator_version) for e in recorder.select_recorded(0, 10)] == [
        (a, 1),
        (b, 1),
        (a, 2),
        (b, 2),
    ]


def test_a_conflict_in_one_stream_stores_nothing_of_the_others(recorder: PostgresTaskRecorder) -> None:
    taken = stored_event()
    recorder.insert_events([taken])
    with pytest.raises(IntegrityError):
        recorder.insert_events([stored_event(), stored_event(of=cast("UUID", taken.originator_id))])
    assert recorder.max_notification_id() == 1


def test_a_gap_is_refused(recorder: PostgresTaskRecorder) -> None:
    with pytest.raises(IntegrityError):
        recorder.insert_events([stored_event(2)])
    assert recorder.max_notification_id() is None


def test_the_columns_beside_an_event_are_stored(recorder: PostgresTaskRecorder) -> None:
    recorder.insert_events([stored_event()], tenant="acme", kind="sum", queue="slow")
    (stored,) = recorder.select_recorded(0, 10)
    assert isinstance(stored, RecordedEvent)
    assert (stored.tenant, stored.kind, stored.queue) == ("acme", "sum", "slow")


def test_select_recorded_is_bounded_by_after_limit_and_upto(recorder: PostgresTaskRecorder) -> None:
    recorder.insert_events([stored_event() for _ in range(10)])
    assert [e.id for e in recorder.select_recorded(2, 3)] == [3, 4, 5]
    assert [e.id for e in recorder.select_recorded(7, 100, 9)] == [8, 9]
    assert recorder.select_recorded(10, 100) == []


def test_the_tag_is_the_logs(recorder: PostgresTaskRecorder, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select tag from taskledger.log_identity").fetchone()
    assert row == (recorder.tag(),)


def test_a_lost_reply_is_recognised_as_our_own_event(dsn: str, open_recorder: OpenRecorder) -> None:
    faulty = ReplyLost(connector(dsn))
    recorder = open_recorder(faulty)
    task = new_task_id()
    faulty.lose_next_replies(1)
    assert recorder.insert_events([stored_event(1, of=task), stored_event(2, of=task)]) == [1, 2]
    assert faulty.lost == 1
    assert len(recorder.select_recorded(0, 10)) == 2


def test_after_a_lost_reply_anothers_event_is_still_a_conflict(
    dsn: str, recorder: PostgresTaskRecorder, open_recorder: OpenRecorder
) -> None:
    faulty = ReplyLost(connector(dsn))
    unlucky = open_recorder(faulty)
    task = new_task_id()
    recorder.insert_events([stored_event(1, of=task)])
    faulty.lose_next_replies(1)
    with pytest.raises(IntegrityError):
        unlucky.insert_events([stored_event(1, of=task)])


def test_connections_lost_while_idle_are_replaced(dsn: str, recorder: PostgresTaskRecorder) -> None:
    recorder.insert_events([stored_event()])
    _terminate(dsn, "taskledger-test-recorder")
    assert recorder.insert_events([stored_event()]) == [2]
    _terminate(dsn, "taskledger-test-recorder")
    assert recorder.max_notification_id() == 2


def test_a_call_ends_at_its_deadline_while_the_log_is_locked(dsn: str, open_recorder: OpenRecorder) -> None:
    recorder = open_recorder(connector(dsn), budget_seconds=0.3)
    with psycopg.connect(dsn) as holder:
        holder.execute("select pg_advisory_xact_lock(%s)", (APPEND_LOCK,))
        started_at = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            recorder.insert_events([stored_event()])
        # Far below the server's own lock_timeout, which would end the call as well.
        assert 0.2 < time.monotonic() - started_at < 3
    assert isinstance(caught.value, StoreUnavailable)
    # The connection was cut; the next call opens another.
    assert recorder.insert_events([stored_event()]) is not None


def test_a_database_that_is_not_migrated(empty_dsn: str, open_recorder: OpenRecorder) -> None:
    recorder = open_recorder(connector(empty_dsn))
    with pytest.raises(ProgrammingError) as caught:
        recorder.insert_events([stored_event()])
    assert isinstance(caught.value, SchemaNotReady)
    with pytest.raises(SchemaNotReady):
        recorder.select_recorded(0, 10)


def test_many_threads_share_few_connections(dsn: str, recorder: PostgresTaskRecorder) -> None:
    counts: list[int] = []

    def read() -> None:
        for _ in range(20):
            recorder.select_recorded(0, 10)

    threads = [threading.Thread(target=read) for _ in range(16)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        counts.append(_connections(dsn, "taskledger-test-recorder"))
    assert max(counts) <= 4


def test_a_subscription_survives_the_loss_of_its_connections(
    dsn: str, recorder: PostgresTaskRecorder
) -> None:
    seen: list[int] = []
    before = set(threading.enumerate())
    with recorder.subscribe(gt=0) as subscription:
        reader = threading.Thread(target=lambda: seen.extend(n.id for n in subscription))
        reader.start()
        recorder.insert_events([stored_event()])
        wait_until(lambda: seen == [1])
        wait_until(lambda: _listeners(dsn) == 1, "the subscription to listen")
        _terminate(dsn, "taskledger-test-recorder")
        recorder.insert_events([stored_event()])
        wait_until(lambda: seen == [1, 2])
        wait_until(lambda: _listeners(dsn) == 1, "the subscription to listen again")
        subscription.stop()
        reader.join()
    assert set(threading.enumerate()) <= before


def test_a_subscription_polls_where_no_notification_arrives(
    dsn: str, recorder: PostgresTaskRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.subscription.LOG_CHANNEL", "nobody_notifies_this")
    with recorder.subscribe(gt=0) as subscription:
        wait_until(lambda: _listeners(dsn) == 1)
        recorder.insert_events([stored_event()])
        assert next(subscription).id == 1


def _terminate(dsn: str, name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where application_name = %s and datname = current_database()",
            (name,),
        )


def _connections(dsn: str, name: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity"
            " where application_name = %s and datname = current_database()",
            (name,),
        ).fetchone()
    assert row is not None
    return int(row[0])


def _listeners(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity"
            " where query ilike 'listen %%' and datname = current_database()",
        ).fetchone()
    assert row is not None
    return int(row[0])


class Ledger(Application[UUID]):
    """The library's application over our log; it holds no aggregate classes of its own."""


@pytest.fixture
def ledger(dsn: str) -> Iterator[Ledger]:
    with Ledger(env={"PERSISTENCE_MODULE": "events.recorder", "POSTGRES_DSN": dsn}) as application:
        yield application


def created(task_id: UUID) -> TaskCreated:
    return TaskCreated(
        originator_id=task_id,
        originator_version=1,
        event_uid=new_uid(),
        kind="sum",
        payload={"x": 1},
    )


def started(task_id: UUID) -> TaskStarted:
    return TaskStarted(
        originator_id=task_id,
        originator_version=2,
        event_uid=new_uid(),
        attempt=1,
        holder="h",
        worker="w",
    )


def test_the_librarys_application_saves_and_reads_our_records(ledger: Ledger) -> None:
    task_id = new_task_id()
    events: list[Any] = [created(task_id), started(task_id)]
    recordings = ledger.save(*events)
    assert [r.notification.id for r in recordings] == [1, 2]
    assert list(ledger.events.get(task_id)) == events
    notifications = ledger.notification_log.select(start=1, limit=10)
    assert [n.topic for n in notifications] == ["TaskCreated", "TaskStarted"]
    assert [ledger.mapper.to_domain_event(n) for n in notifications] == events


def test_the_librarys_repository_folds_our_records(ledger: Ledger) -> None:
    task_id = new_task_id()
    events: list[Any] = [created(task_id), started(task_id)]
    ledger.save(*events)

    def fold(_: Any, history: Any) -> Any:
        return [type(e).__name__ for e in history]

    assert ledger.repository.get(task_id, projector_func=fold) == ["TaskCreated", "TaskStarted"]


def test_the_librarys_application_meets_a_version_clash(ledger: Ledger) -> None:
    task_id = new_task_id()
    ledger.save(cast("Any", created(task_id)))
    with pytest.raises(IntegrityError):
        ledger.save(cast("Any", created(task_id)))


def test_the_factory_says_what_it_does_not_build(dsn: str) -> None:
    with pytest.raises(ConfigurationError):
        Factory({})
    factory = Factory({"POSTGRES_DSN": dsn})
    with pytest.raises(NotSupportedError):
        factory.aggregate_recorder()
    with pytest.raises(NotSupportedError):
        factory.process_recorder()
    factory.close()
