"""What the stores hold, read past every process and proxy: the checker's half of the evidence."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import psycopg
from eventsourcing.persistence import StoredEvent
from redis import Redis

from events.codec import EventMapper, data_of, is_task_topic
from taskledger.redis import GROUP
from tests.chaos.evidence import KeyRow, LoggedEvent, PendingEntry

_EVENTS: Final = """
select notification_id, originator_id, originator_version, topic, state, tenant
from taskledger.task_events order by notification_id
"""
_KEYS: Final = """
select k.tenant, k.operation, k.key, coalesce(array_agg(distinct e.originator_id::text)
    filter (where e.originator_id is not null), '{}')
from taskledger.idempotency_keys k
left join taskledger.task_events e on e.notification_id between k.first_position and k.last_position
group by 1, 2, 3
"""


def read_log(dsn: str) -> tuple[list[LoggedEvent], list[int]]:
    """The tasks' events, and the positions of all events, queues' too."""
    mapper = EventMapper()
    log: list[LoggedEvent] = []
    positions: list[int] = []
    with psycopg.connect(dsn) as connection, connection.cursor(name="log") as cursor:
        cursor.itersize = 5_000
        cursor.execute(_EVENTS)
        for position, task, version, topic, state, tenant in cursor:
            positions.append(position)
            if is_task_topic(topic):
                data = data_of(mapper.decode(StoredEvent(task, version, topic, bytes(state))))
                log.append(LoggedEvent(position, str(task), version, topic, data, tenant, _mark(data)))
    return log, positions


def read_keys(dsn: str) -> list[KeyRow]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(_KEYS).fetchall()
    return [KeyRow(tenant, operation, key, sorted(tasks)) for tenant, operation, key, tasks in rows]


def read_streams(url: str) -> tuple[list[PendingEntry], dict[str, int]]:
    """What consumers were given and have not acknowledged, and how long each stream is."""
    pending: list[PendingEntry] = []
    lengths: dict[str, int] = {}
    with Redis.from_url(url, decode_responses=True) as redis:
        keys: Iterable[str] = cast("Any", redis).scan_iter(match="{tl:*", _type="stream")
        for key in keys:
            lengths[key] = redis.xlen(key)
            if not any(group["name"] == GROUP for group in redis.xinfo_groups(key)):
                continue
            found: list[dict[str, Any]] = cast("Any", redis).xpending_range(key, GROUP, "-", "+", 1_000)
            for one in found:
                idle = int(one["time_since_delivered"])
                pending.append(PendingEntry(stream=key, entry=one["message_id"], idle_ms=idle))
    return pending, lengths


def head(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select max(notification_id) from taskledger.task_events").fetchone()
    return 0 if row is None or row[0] is None else int(row[0])


def count_connections(dsn: str) -> dict[str, int]:
    """Of our processes, by what the connection is called."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "select application_name, count(*) from pg_stat_activity"
            " where application_name like 'taskledger-%' group by 1"
        ).fetchall()
    return {name.removeprefix("taskledger-"): count for name, count in rows}


def count_fds(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _mark(data: dict[str, Any]) -> str | None:
    payload: Any = data.get("payload")
    fields = cast("dict[str, Any]", payload) if isinstance(payload, dict) else {}
    mark = fields.get("mark")
    return mark if isinstance(mark, str) else None


_ATTEMPTS: Final = """
select e.originator_id, e.topic, e.state, extract(epoch from e.recorded_at)::float8
from taskledger.task_events e
where e.topic in ('TaskStarted', 'TaskFailed') and e.originator_id in (
    select originator_id from taskledger.task_events where topic = 'TaskFailed')
order by e.originator_id, e.originator_version
"""


@dataclass(frozen=True, slots=True)
class Death:
    """A worker's. `at`: seconds of the wall clock; `calm`: nothing else happened for a while."""

    worker: str
    at: float
    calm: bool


def takeovers(dsn: str, deaths: Sequence[Death], *, calm: bool) -> list[float]:
    """Seconds from each worker's death to the next start of each task that was lost with it."""
    mapper = EventMapper()
    found: list[float] = []
    running: tuple[str, float] | None = None
    lost: Death | None = None
    current: object = None
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(_ATTEMPTS).fetchall()
    for task, topic, state, at in rows:
        if task != current:
            current, running, lost = task, None, None
        data = data_of(mapper.decode(StoredEvent(task, 1, topic, bytes(state))))
        if topic == "TaskStarted":
            if lost is not None and lost.calm == calm:
                found.append(at - lost.at)
            running, lost = (str(data["worker"]), at), None
        elif data["cause"] == "lost" and running is not None:
            lost = _death(deaths, *running, before=at)
    return found


def _death(deaths: Sequence[Death], worker: str, after: float, *, before: float) -> Death | None:
    """Of the worker that began an attempt after `after` and was given up `before`."""
    return next((one for one in deaths if one.worker == worker and after < one.at < before), None)
