"""The projector in tests: on a thread, or by hand up to the head of the log."""

import random
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
from eventsourcing.persistence import StoredEvent
from psycopg.rows import dict_row

from command_side.commands import (
    CancelTask,
    CompleteTask,
    DiscardTask,
    FailTask,
    RequeueTask,
    StartTask,
    TaskCommand,
)
from command_side.service import Applied
from events.append import AppendCommand, Appended, StreamAppend
from events.codec import EventMapper
from events.deadline import after
from events.task_events import TaskError
from projector.generations import Generation, ensure_live, generations, live
from projector.kept import READ_TABLES, Kept
from projector.runner import Projector
from projector.view import schema_name
from projector.watchdog import ANSWER_SECONDS
from taskledger.postgres import connect_sync
from tests.support import Service

ERROR = TaskError(type="ValueError", message="no")


@contextmanager
def following(
    dsn: str, kept: Kept = READ_TABLES, *, poll_seconds: float = 0.1, answer_seconds: float = ANSWER_SECONDS
) -> Generator[Projector]:
    """A projector at work for the length of the block."""
    stop = threading.Event()
    projector = Projector(dsn, kept, poll_seconds=poll_seconds, answer_seconds=answer_seconds)
    thread = threading.Thread(target=projector.run, args=(stop,), name="projector")
    thread.start()
    try:
        yield projector
    finally:
        stop.set()
        thread.join(15)
        assert not thread.is_alive()


def project(dsn: str, kept: Kept = READ_TABLES) -> int:
    """Brings the live generation to the head of the log; returns its checkpoint."""
    with connect_sync(dsn, name="test") as connection:
        follower = kept.follow(connection, EventMapper(), ensure_live(connection, kept.definition))
        while follower.step():
            continue
        follower.announce()
        return follower.checkpoint


def present(dsn: str, kept: Kept = READ_TABLES) -> list[Generation]:
    with connect_sync(dsn, name="test") as connection:
        return generations(connection, kept.definition)


def live_number(dsn: str) -> int:
    with connect_sync(dsn, name="test") as connection:
        generation = live(connection)
    assert generation is not None
    return generation.number


def table(dsn: str, name: str = "tasks", generation: int | None = None) -> list[dict[str, Any]]:
    """All rows, in the order of the whole row."""
    schema = schema_name(live_number(dsn) if generation is None else generation)
    with psycopg.connect(dsn) as connection:
        cursor = connection.cursor(row_factory=dict_row)
        return cursor.execute(f"select * from {schema}.{name} t order by t::text".encode()).fetchall()


def row(dsn: str, task_id: UUID) -> dict[str, Any]:
    return next(r for r in table(dsn) if r["id"] == task_id)


def execute(dsn: str, statement: str, *parameters: Any) -> int:
    """As the superuser, by hand; returns how many rows it touched."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(statement.encode(), parameters).rowcount


async def append_raw(service: Service, task_id: UUID, version: int, topic: str, state: bytes) -> int:
    stored = StoredEvent(task_id, version, topic, state)
    stream = StreamAppend(task_id, [stored], "default", "sum", "default")
    outcomes = await service.log.append([AppendCommand([stream])], deadline=after(5))
    assert isinstance(outcomes[0], Appended)
    return outcomes[0].last_position


async def many_histories(service: Service, count: int = 40, seed: int = 1) -> list[UUID]:
    """Tasks in all sorts of states, interleaved, and a paused queue."""
    choice = random.Random(seed)
    ids = [
        (
            await service.create(
                kind=f"k{n % 3}",
                queue=f"q{n % 2}",
                payload={"n": n, "text": "grüße \0"},
                max_attempts=1 + n % 3,
                tags=tuple(f"t{m}" for m in range(n % 4)),
            )
        ).id
        for n in range(count)
    ]
    await service.commands.set_paused("q1", paused=True, reason="maintenance")
    for _ in range(3):
        for task_id in choice.sample(ids, len(ids)):
            state = await service.state(task_id)
            commands = _possible(state.status, state.attempt)
            if commands and choice.random() < 0.7:
                answer = await service.execute(task_id, choice.choice(commands))
                assert isinstance(answer, Applied)
    return ids


def _possible(status: str, attempt: int) -> Sequence[TaskCommand]:
    match status:
        case "queued":
            return StartTask(holder="h", worker="w"), CancelTask(reason="why")
        case "running":
            return (
                CompleteTask(attempt, {"n": None}),
                FailTask(attempt=attempt, cause="error", error=ERROR),
                FailTask(attempt=attempt, cause="error", error=ERROR, retryable=False),
                FailTask(attempt=attempt, cause="lost"),
                CancelTask(),
            )
        case "dead" | "cancelled":
            return RequeueTask(), DiscardTask()
        case "retrying":
            return (CancelTask(),)
        case _:
            return ()
