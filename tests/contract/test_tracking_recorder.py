"""The library's conformance case for tracking recorders, and the checkpoints under it."""

import threading
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from eventsourcing.persistence import Tracking, TrackingRecorder, WaitInterruptedError
from psycopg import AsyncConnection

from events.connections import Connect
from events.errors import CheckpointConflict, SchemaNotReady
from events.recorder import Factory
from events.tracking import (
    PostgresTrackingRecorder,
    advance,
    advance_async,
    checkpoint,
    checkpoint_async,
)
from taskledger.postgres import connect_sync
from tests.contract import conformance
from tests.support import wait_until


def connector(dsn: str) -> Connect:
    return lambda: connect_sync(dsn, name="test-tracking")


@pytest.fixture
def recorder(dsn: str) -> Iterator[PostgresTrackingRecorder]:
    with closing(PostgresTrackingRecorder(connector(dsn))) as recorder:
        yield recorder


class TestTrackingRecorder(conformance.TrackingRecorderTestCase):
    @pytest.fixture(autouse=True)
    def _database(self, dsn: str) -> None:
        self.dsn = dsn

    def create_recorder(self) -> TrackingRecorder:
        recorder = PostgresTrackingRecorder(connector(self.dsn))
        self.addCleanup(recorder.close)
        return recorder


def test_a_checkpoint_moves_only_from_where_it_is_thought_to_be(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert checkpoint(connection, "p") == 0
        with pytest.raises(CheckpointConflict):
            advance(connection, "p", 5, 9)  # none stored: that is 0, not 5
        advance(connection, "p", 0, 5)
        with pytest.raises(CheckpointConflict):
            advance(connection, "p", 0, 6)
        with pytest.raises(CheckpointConflict):
            advance(connection, "p", 4, 6)
        advance(connection, "p", 5, 5)
        advance(connection, "p", 5, 9)
        assert checkpoint(connection, "p") == 9
        assert checkpoint(connection, "q") == 0


def test_a_checkpoint_never_moves_back(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        advance(connection, "p", 0, 5)
        with pytest.raises(ValueError, match="cannot move back"):
            advance(connection, "p", 5, 4)


def test_a_checkpoint_belongs_to_the_callers_transaction(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        advance(connection, "p", 0, 5)
        connection.rollback()
        assert checkpoint(connection, "p") == 0


@pytest.mark.parametrize("stored", [0, 3])
def test_of_two_transactions_at_once_the_second_to_commit_is_refused(dsn: str, stored: int) -> None:
    refused: list[CheckpointConflict] = []

    def second() -> None:
        with psycopg.connect(dsn) as connection:
            try:
                advance(connection, "p", stored, stored + 2)
            except CheckpointConflict as error:
                refused.append(error)

    with psycopg.connect(dsn) as first:
        if stored:
            advance(first, "p", 0, stored)
            first.commit()
        advance(first, "p", stored, stored + 1)
        thread = threading.Thread(target=second)
        thread.start()
        first.commit()
        thread.join()
        assert len(refused) == 1
        assert checkpoint(first, "p") == stored + 1


async def test_the_same_over_an_asyncio_connection(dsn: str) -> None:
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        assert await checkpoint_async(connection, "p") == 0
        await advance_async(connection, "p", 0, 5)
        with pytest.raises(CheckpointConflict):
            await advance_async(connection, "p", 0, 6)
        assert await checkpoint_async(connection, "p") == 5


def test_wait_is_woken_by_the_notification(
    recorder: PostgresTrackingRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.tracking._POLL_SECONDS", 30)
    answers: list[bool] = []
    original = recorder.has_tracking_id

    def has_tracking_id(name: str, position: int | None) -> bool:
        answers.append(original(name, position))
        return answers[-1]

    monkeypatch.setattr(recorder, "has_tracking_id", has_tracking_id)
    thread = threading.Thread(target=recorder.wait, args=("p", 7, 50))
    thread.start()
    wait_until(lambda: len(answers) == 2, "wait() to listen, and to have looked once more")
    recorder.insert_tracking(Tracking("p", 7))
    thread.join(20)
    assert not thread.is_alive()


def test_wait_sees_a_checkpoint_that_nobody_notified(dsn: str, recorder: PostgresTrackingRecorder) -> None:
    thread = threading.Thread(target=recorder.wait, args=("p", 7, 10))
    thread.start()
    with psycopg.connect(dsn) as connection:
        advance(connection, "p", 0, 8)
    thread.join()
    assert recorder.has_tracking_id("p", 7)


def test_wait_ends_when_it_is_interrupted(recorder: PostgresTrackingRecorder) -> None:
    interrupt = threading.Event()
    raised: list[WaitInterruptedError] = []

    def wait() -> None:
        try:
            recorder.wait("p", 7, timeout=30, interrupt=interrupt)
        except WaitInterruptedError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    interrupt.set()
    thread.join(10)
    assert len(raised) == 1


def test_a_database_that_is_not_migrated(empty_dsn: str) -> None:
    recorder = PostgresTrackingRecorder(connector(empty_dsn))
    with closing(recorder), pytest.raises(SchemaNotReady):
        recorder.max_tracking_id("p")


def test_the_factory_builds_it(dsn: str) -> None:
    factory = Factory({"POSTGRES_DSN": dsn})
    factory.tracking_recorder().insert_tracking(Tracking("p", 1))
    assert factory.tracking_recorder().max_tracking_id("p") == 1
    factory.close()
