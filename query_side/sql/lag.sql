-- How far the live generation is behind the log, and since how long.
select true as present, h.head, extract(epoch from clock_timestamp() - e.recorded_at)::float8 as seconds
from (select coalesce(max(notification_id), 0) as head from taskledger.task_events) h
left join lateral (
    select recorded_at from taskledger.task_events
    where notification_id > live.checkpoint order by notification_id limit 1
) e on true
