"""`taskledger rebuild` of a long log, beside one SQL statement that folds the same events."""

import time
from typing import Final

import psycopg

from benchmarks.history import EVENTS_A_TASK, fill
from benchmarks.subject import WrongError
from benchmarks.workloads import Figures, Launch

_LIVE: Final = """
select format('taskledger_read_g%s', generation) from taskledger.projection_generations where state = 'live'
"""
_TABLE: Final = """
create table public.folded (like {live}.tasks including storage, primary key (id)) with (fillfactor = 80)
"""
_FOLD: Final = """
insert into public.folded (
    id, created_position, created_at, kind, queue, tenant, priority, tags, payload, max_attempts,
    timeout_seconds, version, position, status, queued_position, queued_at, attempt, failures, isolated,
    holder, worker, started_at, finished_at, cancel_requested, result
)
select originator_id, min(notification_id), min(recorded_at), min(kind), min(queue), min(tenant),
    'normal', '{}', min(state) filter (where topic = 'TaskCreated'), 5, 300,
    max(originator_version), max(notification_id),
    case when bool_or(topic = 'TaskCompleted') then 'completed' else 'queued' end,
    max(notification_id) filter (where topic in ('TaskCreated', 'TaskQueued', 'TaskRequeued')),
    max(recorded_at) filter (where topic in ('TaskCreated', 'TaskQueued', 'TaskRequeued')),
    count(*) filter (where topic = 'TaskStarted'), count(*) filter (where topic = 'TaskFailed'), false,
    null, 'bench', max(recorded_at) filter (where topic = 'TaskStarted'),
    max(recorded_at) filter (where topic = 'TaskCompleted'), false,
    min(state) filter (where topic = 'TaskCompleted')
from taskledger.task_events group by originator_id
"""
"""What the tables of a rebuild hold of each task, as far as it stands in the log's columns; states are
stored as they are, not read. No other index than the primary key, no counters, no proof."""


def rebuild(launch: Launch, tasks: int) -> Figures:
    """The second of two rebuilds, which proves parity with the first: nothing else runs."""
    with launch(0).prepared() as running:
        fill(running.dsn, tasks)
        with psycopg.connect(running.dsn, autocommit=True) as connection:
            connection.execute("vacuum analyze taskledger.task_events")
            running.rebuild()
            connection.execute("checkpoint")
            seconds, said = running.rebuild()
            live = _live(connection)
            _check(connection, live, tasks, said)
            connection.execute("checkpoint")
            limit = _limit(connection, live, tasks)
    events = EVENTS_A_TASK * tasks
    return {
        "events/s": events / seconds,
        "one statement, events/s": events / limit,
        "share": limit / seconds,
    }


def _live(connection: psycopg.Connection) -> str:
    row = connection.execute(_LIVE).fetchone()
    if row is None:
        raise WrongError("there is no live generation")
    return str(row[0])


def _check(connection: psycopg.Connection, live: str, tasks: int, said: str) -> None:
    if "were equal" not in said:
        raise WrongError(f"two rebuilds of one log differ: {said}")
    counted = connection.execute(f"select status, tasks from {live}.counts".encode()).fetchall()
    stored = connection.execute(
        f"select status, count(*) from {live}.tasks where version = %s group by status".encode(),
        (EVENTS_A_TASK,),
    ).fetchall()
    if not counted == stored == [("completed", tasks)]:
        raise WrongError(f"of {tasks} completed tasks, {counted} are counted and {stored} stored")


def _limit(connection: psycopg.Connection, live: str, tasks: int) -> float:
    connection.execute(_TABLE.format(live=live).encode())
    began = time.perf_counter()
    count = connection.execute(_FOLD.encode()).rowcount
    seconds = time.perf_counter() - began
    if count != tasks:
        raise WrongError(f"one statement folded {count} of {tasks} tasks")
    return seconds
