"""The SQL of the webhooks process. Parameters are bound in binary; `%t` where an array may hold nothing but
nulls. What moves the checkpoint does nothing at all unless it is where the caller left it."""

from typing import Final

NAME: Final = "webhooks"
"""Of the checkpoint."""

CHECKPOINT: Final = f"select position from taskledger.checkpoints where name = '{NAME}'"

EVENTS: Final = """
select originator_id, originator_version, topic, notification_id, tenant, kind, queue
from taskledger.task_events
where notification_id > %b::bigint and notification_id <= %b::bigint and topic = any(%b::text[])
order by notification_id limit %b::bigint
"""
"""Positions have no gaps, so the range bounds what is read, however few of the events match."""

BEGINNINGS: Final = """
select originator_id, originator_version, topic, state from taskledger.task_events
where originator_id = any(%b::uuid[]) and originator_version = 1
"""

COLUMNS: Final = (
    "webhook_id, tenant, version, position, status, cause, url, types, kinds, queues, tags, description,"
    " generation, rotated_at, created_at, created_position, changed_at"
)

WEBHOOKS: Final = f"""
select {COLUMNS}, replay_after, replay_upto, revive_upto, failures,
       extract(epoch from paused_until - clock_timestamp())::float8 as paused_seconds
from taskledger.webhooks where status = 'enabled'
"""

COUNT: Final = "select count(*) from taskledger.webhooks where tenant = %b and status <> 'deleted'"

_MOVED: Final = f"""
moved as (
    update taskledger.checkpoints set position = %(to)b::bigint, updated_at = clock_timestamp(),
        event_position = case when %(at)t::timestamptz is null then null else %(to)b::bigint end,
        event_at = %(at)t::timestamptz
    where name = '{NAME}' and position = %(from)b::bigint
    returning set_config('synchronous_commit', 'off', true)
)
"""
# A crash of the server takes rows and checkpoint together, and the events are read again; or it takes what
# is known of an attempt, which is made again. Both are what "at least once" means.

ADVANCE: Final = f"""
with {_MOVED}, put as (
    insert into taskledger.webhook_deliveries
        (webhook_id, position, task_id, version, topic, status, next_at)
    select n.*, 'pending', clock_timestamp()
    from unnest(%(webhook)b::uuid[], %(position)b::bigint[], %(task)b::uuid[], %(version)b::bigint[],
                %(topic)b::text[]) as n
    where exists (select from moved)
    on conflict (webhook_id, position) do nothing
)
select count(*) from moved
"""

PUT: Final = f"""
with {_MOVED}
insert into taskledger.webhooks as w ({COLUMNS})
select %(webhook_id)b::uuid, %(tenant)b::text, %(version)b::bigint, %(position)b::bigint, %(status)b::text,
       %(cause)t::text, %(url)b::text, %(types)b::text[], %(kinds)b::text[], %(queues)b::text[],
       %(tags)b::text[], %(description)t::text, %(generation)b::integer, %(rotated_at)t::timestamptz,
       %(created_at)b::timestamptz, %(created_position)b::bigint, %(changed_at)b::timestamptz
where exists (select from moved)
on conflict (webhook_id) do update set
    version = excluded.version, position = excluded.position, status = excluded.status,
    cause = excluded.cause, generation = excluded.generation, rotated_at = excluded.rotated_at,
    changed_at = excluded.changed_at
returning webhook_id
"""

# Whatever an operator asks for ends a pause: it is to be seen at once whether the endpoint is well again.
RESUME: Final = """
update taskledger.webhooks set paused_until = null, failures = 0, failing_since = null where webhook_id = %b
"""

REPLAY: Final = """
update taskledger.webhooks set replay_after = least(replay_after, %b::bigint),
    replay_upto = greatest(replay_upto, %b::bigint)
where webhook_id = %b::uuid
"""
WISH_REVIVAL: Final = "update taskledger.webhooks set revive_upto = %b::bigint where webhook_id = %b::uuid"

# First in line: whoever asks for a test wants to see its outcome, not that of what waits.
SEND_TEST: Final = """
insert into taskledger.webhook_deliveries (webhook_id, position, task_id, version, topic, status, next_at)
values (%b::uuid, %b::bigint, %b::uuid, %b::bigint, %b::text, 'pending', 'epoch')
on conflict (webhook_id, position) do nothing
"""

# A part at a time, down from the newest. The webhook forgets about it once there are no more.
REVIVE: Final = """
with revived as (
    update taskledger.webhook_deliveries d set status = 'pending', attempt = 0, settled_at = null,
        next_at = clock_timestamp()
    from (
        select webhook_id, position from taskledger.webhook_deliveries
        where webhook_id = %(webhook_id)b::uuid and status = 'dead' and position <= %(upto)b::bigint
        order by position desc limit %(limit)b::bigint
    ) c
    where d.webhook_id = c.webhook_id and d.position = c.position
    returning 1
), counted as (
    select count(*) as revived from revived
), done as (
    update taskledger.webhooks set revive_upto = null from counted
    where webhook_id = %(webhook_id)b::uuid and counted.revived < %(limit)b::bigint
      and revive_upto = %(upto)b::bigint
)
select revived from counted
"""

REPLAYED: Final = """
with moved as (
    update taskledger.webhooks set
        replay_after = case when replay_upto > %(to)b::bigint then %(to)b::bigint end,
        replay_upto = case when replay_upto > %(to)b::bigint then replay_upto end
    where webhook_id = %(webhook_id)b::uuid and replay_after = %(from)b::bigint
    returning webhook_id
), put as (
    insert into taskledger.webhook_deliveries as d
        (webhook_id, position, task_id, version, topic, status, next_at)
    select %(webhook_id)b::uuid, n.*, 'pending', clock_timestamp()
    from unnest(%(position)b::bigint[], %(task)b::uuid[], %(version)b::bigint[], %(topic)b::text[]) as n
    where exists (select from moved)
    on conflict (webhook_id, position) do update set status = 'pending', attempt = 0,
        next_at = excluded.next_at, settled_at = null
    where d.status <> 'pending'
)
select count(*) from moved
"""

# In order for each task: what is pending of an earlier event goes first.
DUE: Final = """
select d.position, d.task_id, d.version, d.topic, d.attempt,
       extract(epoch from d.next_at - statement_timestamp())::float8 as wait_seconds
from taskledger.webhook_deliveries d
where d.webhook_id = %b::uuid and d.status = 'pending'
  and not exists (
      select from taskledger.webhook_deliveries e
      where e.webhook_id = d.webhook_id and e.task_id = d.task_id and e.status = 'pending'
        and e.position < d.position
  )
order by d.next_at, d.position limit %b::bigint
"""

RECORD: Final = """
with moved as (
    update taskledger.webhook_deliveries d set
        status = r.status, attempt = r.attempt, last_status = r.http_status, last_error = r.error,
        next_at = clock_timestamp() + make_interval(secs => r.wait_seconds),
        last_attempt_at = clock_timestamp(),
        settled_at = case when r.status <> 'pending' then clock_timestamp() end
    from unnest(%(position)b::bigint[], %(attempt)b::integer[], %(status)b::text[],
                %(http_status)t::integer[], %(error)t::text[], %(wait_seconds)b::float8[])
         as r(position, attempt, status, http_status, error, wait_seconds)
    where d.webhook_id = %(webhook_id)b::uuid and d.position = r.position
      and d.status = 'pending' and d.attempt = r.attempt - 1
), relaxed as (
    select set_config('synchronous_commit', 'off', true)
)
update taskledger.webhooks w set
    failures = %(failures)b::integer,
    failing_since = case when %(failures)b::integer > 0
                         then coalesce(w.failing_since, clock_timestamp()) end,
    paused_until = case when %(pause_seconds)b::float8 > 0
                        then clock_timestamp() + make_interval(secs => %(pause_seconds)b::float8) end,
    last_attempt_at = clock_timestamp(),
    last_success_at = case when %(succeeded)b::boolean then clock_timestamp() else w.last_success_at end,
    last_status = %(last_status)t::integer, last_error = %(last_error)t::text
from relaxed
where w.webhook_id = %(webhook_id)b::uuid and %(sent)b::boolean
returning extract(epoch from clock_timestamp() - w.failing_since)::float8
"""

KEPT_DAYS: Final = 7
"""Of deliveries that are delivered or dead. Their events stay, and can be asked for again."""
PURGE: Final = (
    f"""
    delete from taskledger.webhook_deliveries where ctid in (
        select ctid from taskledger.webhook_deliveries
        where status <> 'pending'
          and settled_at < statement_timestamp() - make_interval(days => {KEPT_DAYS})
        order by settled_at limit %b::bigint
    )
    """,
    """
    delete from taskledger.webhook_deliveries where ctid in (
        select d.ctid from taskledger.webhooks w
        join taskledger.webhook_deliveries d using (webhook_id)
        where w.status = 'deleted' limit %b::bigint
    )
    """,
    """
    delete from taskledger.webhooks where ctid in (
        select w.ctid from taskledger.webhooks w
        where w.status = 'deleted' and not exists (
            select from taskledger.webhook_deliveries d where d.webhook_id = w.webhook_id
        ) limit %b::bigint
    )
    """,
)
