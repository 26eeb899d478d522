-- Of the tasks that somebody waits for, those that no worker will touch any more, as task.sql reads one, until
-- the limit of bytes is passed; `matched` tells that there were more.
select true as present, {columns}, p.position as parked_position, t.matched
from (
    select w.*, count(*) over () as matched, sum(w.bytes) over (order by w.id) - w.bytes as before
    from (
        select t.*, octet_length(t.payload) + coalesce(octet_length(t.result), 0) as bytes
        from {{read}}.tasks t
        where t.id = any(%(ids)s) and t.tenant = %(tenant)s
          and t.status in ('completed', 'dead', 'cancelled', 'discarded')
    ) w
) t
left join lateral (
    select min(position) as position from taskledger.parked_events
    where projection = 'tasks' and originator_id = t.id and tenant = t.tenant
) p on true
left join taskledger.leases l on t.status = 'running' and l.holder = t.id::text || ':' || t.attempt
where t.before < %(page_bytes)s
