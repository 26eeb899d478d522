-- A time of the past -> the position of the last event at or before it; a position as it stands. Positions
-- have no gaps and recorded_at never falls with them: halving finds a time in as many looks into the index
-- as the number of events has binary digits.
with recursive log as materialized (
    select i.tag, coalesce(h.notification_id, 0) as head,
           least(i.created_at, f.recorded_at) as began,
           greatest(clock_timestamp(), h.recorded_at) as now
    from taskledger.log_identity i
    left join lateral (
        select notification_id, recorded_at from taskledger.task_events order by notification_id desc limit 1
    ) h on true
    left join lateral (
        select recorded_at from taskledger.task_events order by notification_id limit 1
    ) f on true
), halving(low, high) as (
    select 0::bigint, head from log where %(position)s::bigint is null
    union all
    select case when e.recorded_at <= %(time)s::timestamptz then e.notification_id else h.low end,
           case when e.recorded_at <= %(time)s::timestamptz then h.high else h.middle - 1 end
    from (select low, high, (low + high + 1) / 2 as middle from halving) h
    cross join lateral (
        select notification_id, recorded_at from taskledger.task_events
        where notification_id >= h.middle order by notification_id limit 1
    ) e
    where h.low < h.high
), found as (
    select coalesce(%(position)s::bigint, (select max(low) from halving)) as position
)
select log.*, found.position, coalesce(%(time)s::timestamptz, e.recorded_at, log.began) as time
from log cross join found
left join lateral (
    select recorded_at from taskledger.task_events where notification_id = found.position
) e on true
