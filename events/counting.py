"""How many tasks are in which state, and what a stretch of the log changes in that. Pure, but for its SQL.

No payload is read and nothing is folded: the last event of a task says its status, but for a TaskCreated,
which is looked into where it may have been scheduled. A test holds that against the one fold.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from eventsourcing.persistence import StoredEvent

from events.codec import EventMapper
from events.errors import UnknownEvent
from events.task_events import TaskCreated
from events.task_state import TRANSITIONS

CountKey = tuple[str, str, str, str]
"""Tenant, queue, kind, status."""
Counts = Counter[CountKey]

CHANGES: Final = """
with touched as materialized (
    select distinct originator_id from taskledger.task_events
    where notification_id > %(low)s::bigint and notification_id <= %(high)s::bigint and topic like 'Task%%'
), ends as (
    select t.originator_id, a.tenant, a.queue, a.kind, b.topic as before, a.topic as after,
           case 'TaskCreated' when a.topic then a.state when b.topic then b.state end as state
    from touched t
    cross join lateral (
        select min(position) as position from taskledger.parked_events
        where projection = 'tasks' and originator_id = t.originator_id and topic like 'Task%%'
    ) parked
    cross join lateral (
        select e.topic, e.tenant, e.queue, e.kind, e.state
        from taskledger.task_events e
        where e.originator_id = t.originator_id and e.notification_id <= %(high)s::bigint
          and (parked.position is null or e.notification_id < parked.position)
        order by e.originator_version desc limit 1
    ) a
    left join lateral (
        select e.topic, e.state
        from taskledger.task_events e
        where e.originator_id = t.originator_id and e.notification_id <= %(low)s::bigint
          and (parked.position is null or e.notification_id < parked.position)
        order by e.originator_version desc limit 1
    ) b on true
), looked_into as (
    select tenant, queue, kind, before, after, originator_id, state from ends
    where position('"scheduled":true'::bytea in state) > 0
)
select tenant, queue, kind, before, after, null::uuid as id, null::bytea as state, count(*) as tasks
from ends where state is null or position('"scheduled":true'::bytea in state) = 0
group by tenant, queue, kind, before, after
union all
select *, 1 from looked_into
"""
"""What the events above `low` and up to `high` did: for each group of tasks the topic of the last event up
to `low` (null: there was none) and up to `high`. Of a task with a parked event nothing counts from that on,
as in the read tables. Its cost is that of the events between, however long the log is."""


def changes(rows: Iterable[Mapping[str, Any]], mapper: EventMapper) -> Counts:
    """Differences, from the rows of CHANGES. Raises UnknownEvent and UndecodableEvent."""
    found: Counts = Counter()
    for row in rows:
        scheduled = row["state"] is not None and _is_scheduled(row, mapper)
        where = (row["tenant"], row["queue"], row["kind"])
        if row["before"] is not None:
            found[*where, status_after(row["before"], scheduled=scheduled)] -= row["tasks"]
        found[*where, status_after(row["after"], scheduled=scheduled)] += row["tasks"]
    return found


def status_after(topic: str, *, scheduled: bool) -> str:
    """Of a task whose last event has the topic; `scheduled` is that of a TaskCreated."""
    if topic == TaskCreated.TOPIC:
        return "scheduled" if scheduled else "queued"
    try:
        (status,) = TRANSITIONS[topic][1]
    except KeyError:
        raise UnknownEvent(f"this release does not know the topic {topic}") from None
    return status


def forward(counts: Counts, differences: Counts) -> Counts:
    """After what changed, without those that came to 0."""
    moved = Counter(counts)
    moved.update(differences)
    return Counter({key: n for key, n in moved.items() if n})


def back(counts: Counts, differences: Counts) -> Counts:
    """Before what changed."""
    return forward(counts, Counter({key: -n for key, n in differences.items()}))


def counts_of(stored: Sequence[Sequence[Any]]) -> Counts:
    """As `kept_counts` holds them."""
    return Counter({(tenant, queue, kind, status): n for tenant, queue, kind, status, n in stored})


def _is_scheduled(row: Mapping[str, Any], mapper: EventMapper) -> bool:
    """Its payload may merely look like it."""
    stored = StoredEvent(row["id"], 1, TaskCreated.TOPIC, row["state"])
    return cast("TaskCreated", mapper.decode(stored)).scheduled
