"""A log filled as fast as it takes events: whole tasks, three events each, as the service stores them."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID, uuid4

import psycopg

from command_side.dispatcher.statements import RESTART
from events.append import AppendCommand, StreamAppend
from events.append_parameters import append_parameters
from events.codec import EventMapper
from events.ids import new_task_id, new_uid
from events.statements import APPEND
from events.task_events import TaskCompleted, TaskCreated, TaskEvent, TaskStarted
from events.tracking import advance

EVENTS_A_TASK: Final = 3
_GROUP: Final = 1_000
"""Tasks that move together: between two events of one lie those of the others."""


def fill(dsn: str, tasks: int) -> None:
    """Tasks `sum` of x = y = n, each created, started and completed."""
    mapper, holder = EventMapper(), str(uuid4())
    with psycopg.connect(dsn, autocommit=True) as connection:
        for first in range(0, tasks, _GROUP):
            ids = [new_task_id() for _ in range(first, min(first + _GROUP, tasks))]
            for events in _steps(ids, first, holder):
                streams = [
                    StreamAppend(event.originator_id, [mapper.encode(event)], kind="sum", queue="default")
                    for event in events
                ]
                cursor = connection.cursor(binary=True)
                cursor.execute(APPEND.encode(), append_parameters([AppendCommand(streams)]), prepare=True)


def pass_dispatcher(dsn: str) -> None:
    """Sets the dispatcher where it would be had it followed such a log: at its end, with nothing that is
    outstanding. To follow it takes minutes for millions of events."""
    with psycopg.connect(dsn) as connection:
        for statement in RESTART:
            connection.execute(statement.encode())
        row = connection.execute("select max(notification_id) from taskledger.task_events").fetchone()
        assert row is not None
        advance(connection, "outstanding", 0, row[0])


def _steps(ids: Sequence[UUID], first: int, holder: str) -> list[list[TaskEvent]]:
    numbered = list(enumerate(ids, start=first))
    return [
        [
            TaskCreated(
                originator_id=task_id,
                originator_version=1,
                event_uid=new_uid(),
                kind="sum",
                payload={"x": n, "y": n},
            )
            for n, task_id in numbered
        ],
        [
            TaskStarted(
                originator_id=task_id,
                originator_version=2,
                event_uid=new_uid(),
                attempt=1,
                holder=holder,
                worker="bench",
            )
            for _, task_id in numbered
        ],
        [
            TaskCompleted(
                originator_id=task_id,
                originator_version=3,
                event_uid=new_uid(),
                attempt=1,
                result={"sum": 2 * n},
                duration=0.000123,
            )
            for n, task_id in numbered
        ],
    ]
