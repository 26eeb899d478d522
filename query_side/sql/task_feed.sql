-- As feed.sql, of one task: by its own index, however long the log is. `last_topic` is of its last event.
select i.tag, coalesce(h.head, 0) as head, h.head_at, m.recorded_at as seen_at, l.topic as last_topic,
       e.originator_id is not null as present, e.*
from taskledger.log_identity i
left join lateral (
    select notification_id as head, recorded_at as head_at
    from taskledger.task_events order by notification_id desc limit 1
) h on true
left join taskledger.task_events m on m.notification_id = %(seen)s::bigint
left join lateral (
    select topic from taskledger.task_events
    where originator_id = %(task_id)s and tenant = %(tenant)s order by originator_version desc limit 1
) l on true
left join lateral (
    select s.* from (
        select n.*, count(*) over () as matched,
               sum(octet_length(n.state)) over (order by n.position) - octet_length(n.state) as before
        from (
            select originator_id, originator_version, topic, state, notification_id as position,
                   recorded_at, tenant, kind, queue
            from taskledger.task_events
            where originator_id = %(task_id)s and tenant = %(tenant)s
              and notification_id > %(after)s::bigint
            order by originator_version limit %(limit)s
        ) n
    ) s where s.before < %(page_bytes)s
) e on true
order by e.position
