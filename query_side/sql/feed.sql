-- A tenant's events above a position, by position, until the limit of events or the one of bytes is passed.
select i.tag, h.head, e.originator_id is not null as present, e.*
from taskledger.log_identity i
cross join (select coalesce(max(notification_id), 0) as head from taskledger.task_events) h
left join lateral (
    select s.* from (
        select n.*, sum(octet_length(n.state)) over (order by n.position) - octet_length(n.state) as before
        from (
            select originator_id, originator_version, topic, state, notification_id as position,
                   recorded_at, tenant, kind, queue
            from taskledger.task_events
            where notification_id > %(after)s::bigint and tenant = %(tenant)s
            order by notification_id limit %(limit)s
        ) n
    ) s where s.before < %(page_bytes)s
) e on true
order by e.position
