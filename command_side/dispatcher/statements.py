"""The dispatcher's SQL. Parameters are bound in binary; `%t` where an array may hold nothing but nulls,
which has no binary form of a certain type. Times are compared with statement_timestamp(): the planner
cannot look up the volatile clock_timestamp() in an index, and would read every row that is scheduled."""

from typing import Final

COLUMNS: Final = (
    "task_id, version, state, tenant, queue, kind, priority, queued_position, queued_at, due_at, holder,"
    " attempt, timeout_seconds, timeout_at, isolated, cancel_requested, unreadable"
)

IDENTITY: Final = """
select (select tag from taskledger.log_identity),
       (select tag from taskledger.outstanding_log),
       coalesce((select position from taskledger.checkpoints where name = 'outstanding'), 0),
       coalesce((select max(notification_id) from taskledger.task_events), 0)
"""

CLOCK: Final = "select clock_timestamp()"

# The checkpoint in the first column, and in a row of its own where nothing is found.
ROWS: Final = f"""
select c.position, {", ".join(f"o.{name}" for name in COLUMNS.split(", "))}
from (
    select coalesce((select position from taskledger.checkpoints where name = 'outstanding'), 0) as position
) c
left join taskledger.outstanding o on o.task_id = any(%b::uuid[])
"""

# One statement, so that no client can stop between its parts, and rows and checkpoint cannot part. It
# does nothing at all unless the checkpoint is where the caller left it. Not waiting for the disk: after
# a crash of the server rows and checkpoint are both a little older, and the batch is folded again.
COMMIT: Final = f"""
with moved as (
    insert into taskledger.checkpoints as c (name, position)
    select 'outstanding', %(to)b::bigint
    where %(from)b::bigint = 0 or exists (select from taskledger.checkpoints where name = 'outstanding')
    on conflict (name) do update set position = excluded.position, updated_at = clock_timestamp()
    where c.position = %(from)b::bigint
    returning set_config('synchronous_commit', 'off', true)
), gone as (
    delete from taskledger.outstanding
    where task_id = any(%(gone)b::uuid[]) and exists (select from moved)
), put as (
    insert into taskledger.outstanding as o ({COLUMNS})
    select * from unnest(
        %(task_id)b::uuid[], %(version)b::bigint[], %(state)b::text[], %(tenant)b::text[],
        %(queue)b::text[], %(kind)b::text[], %(priority)b::text[], %(queued_position)b::bigint[],
        %(queued_at)t::timestamptz[], %(due_at)t::timestamptz[], %(holder)t::text[],
        %(attempt)b::bigint[], %(timeout_seconds)b::double precision[], %(timeout_at)t::timestamptz[],
        %(isolated)b::boolean[], %(cancel_requested)b::boolean[], %(unreadable)b::boolean[]
    )
    where exists (select from moved)
    on conflict (task_id) do update set
        version = excluded.version, state = excluded.state, tenant = excluded.tenant,
        queue = excluded.queue, kind = excluded.kind, priority = excluded.priority,
        queued_position = excluded.queued_position, queued_at = excluded.queued_at,
        due_at = excluded.due_at, holder = excluded.holder, attempt = excluded.attempt,
        timeout_seconds = excluded.timeout_seconds, timeout_at = excluded.timeout_at,
        isolated = excluded.isolated, cancel_requested = excluded.cancel_requested,
        unreadable = excluded.unreadable
)
select count(*) from moved
"""

RESTART: Final = (
    "delete from taskledger.checkpoints where name = 'outstanding'",
    "truncate taskledger.outstanding",
    "delete from taskledger.outstanding_log",
    "insert into taskledger.outstanding_log (tag) select tag from taskledger.log_identity",
)

UNREADABLE: Final = """
select task_id from taskledger.outstanding where unreadable and task_id > %b::uuid
order by task_id limit %b::bigint
"""

# Steps from queue to queue along the index instead of reading all the rows that wait.
QUEUED_QUEUES: Final = """
with recursive q (queue) as (
    (select queue from taskledger.outstanding where state = 'queued' order by queue limit 1)
    union all
    select (select o.queue from taskledger.outstanding o
            where o.state = 'queued' and o.queue > q.queue order by o.queue limit 1)
    from q where q.queue is not null
)
select queue from q where queue is not null
"""

QUEUED_AFTER: Final = f"""
select {COLUMNS} from taskledger.outstanding
where state = 'queued' and queue = %b::text and queued_position > %b::bigint
order by queued_position limit %b::bigint
"""

LONG_QUEUED: Final = f"""
select {COLUMNS} from taskledger.outstanding
where state = 'queued' and (queue, queued_position) > (%b::text, %b::bigint)
order by queue, queued_position limit %b::bigint
"""

DUE: Final = """
select due_at, task_id from taskledger.outstanding
where due_at <= statement_timestamp() and not unreadable
    and (due_at, task_id) > (%b::timestamptz, %b::uuid)
order by due_at, task_id limit %b::bigint
"""

OVERDUE: Final = """
select task_id, attempt, timeout_seconds from taskledger.outstanding
where timeout_at <= statement_timestamp() - make_interval(secs => %b::double precision) and not unreadable
order by timeout_at limit %b::bigint
"""

HOLDERS: Final = """
select h.holder, l.counter, l.lease_seconds
from (select distinct holder from taskledger.outstanding where holder is not null) h
left join taskledger.leases l using (holder)
"""

# Attempts that ran in the worker itself may be what took it, and those that ran in children, along.
HELD: Final = """
select task_id, attempt, bool_or(not isolated) over (partition by holder)
from taskledger.outstanding
where holder = any(%b::text[]) and state = 'running' and not unreadable limit %b::bigint
"""

PURGE: Final = (
    """
    delete from taskledger.idempotency_keys where ctid in (
        select ctid from taskledger.idempotency_keys
        where recorded_at < statement_timestamp() - make_interval(days => 30)
        order by recorded_at limit %b::bigint
    )
    """,
    # A lease may be longer than an hour; its holder then renews no more often than that.
    """
    delete from taskledger.leases where ctid in (
        select ctid from taskledger.leases
        where renewed_at < statement_timestamp() - make_interval(hours => 1, secs => 2 * lease_seconds)
        limit %b::bigint
    )
    """,
)
