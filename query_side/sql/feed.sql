-- A tenant's events in a stretch of the log, by position, until the limit of events or the one of bytes is
-- passed; `matched` tells that there were more bytes. The stretch is bounded, so that a filter which nothing
-- matches costs no more than another. head_at and seen_at are for events.witness.
select i.tag, coalesce(h.head, 0) as head, h.head_at, m.recorded_at as seen_at,
       e.originator_id is not null as present, e.*
from taskledger.log_identity i
left join lateral (
    select notification_id as head, recorded_at as head_at
    from taskledger.task_events order by notification_id desc limit 1
) h on true
left join taskledger.task_events m on m.notification_id = %(seen)s::bigint
left join lateral (
    select s.* from (
        select n.*, count(*) over () as matched,
               sum(octet_length(n.state)) over (order by n.position) - octet_length(n.state) as before
        from (
            select originator_id, originator_version, topic, state, notification_id as position,
                   recorded_at, tenant, kind, queue
            from taskledger.task_events
            where notification_id > %(after)s::bigint and notification_id <= %(upto)s::bigint
              and tenant = %(tenant)s
              and (%(kind)s::text is null or kind = %(kind)s)
              and (%(queue)s::text is null or queue = %(queue)s)
              and (%(types)s::text[] is null or topic = any(%(types)s))
            order by notification_id limit %(limit)s
        ) n
    ) s where s.before < %(page_bytes)s
) e on true
order by e.position
