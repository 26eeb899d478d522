-- What surrounds one task: its queue's switch, whoever holds it, live workers, the dispatcher. `version`
-- tells whether the task has gone on since it was read.
select clock_timestamp() as now,
       (select max(e.originator_version) from taskledger.task_events e
        where e.originator_id = %(id)s) as version,
       (select position from taskledger.checkpoints where name = 'outstanding') as dispatched_to,
       p.topic = 'QueuePaused' as paused, p.originator_id, p.originator_version, p.topic, p.state,
       p.notification_id as position, p.recorded_at, p.tenant, p.kind, p.queue,
       l.lease_seconds, l.info,
       extract(epoch from clock_timestamp() - l.renewed_at)::double precision as silent_seconds,
       w.*
from (values (true)) one(row)
left join lateral (
    select * from taskledger.task_events
    where originator_id = %(queue_id)s order by originator_version desc limit 1
) p on true
left join taskledger.leases l on l.holder = %(holder)s
cross join (
    select count(*) as live, count(*) filter (where reads) as of_queue,
           count(*) filter (where reads and knows) as able,
           coalesce(sum(slots) filter (where reads and knows), 0)::bigint as slots,
           coalesce(sum(running) filter (where reads and knows), 0)::bigint as running
    from (
        select coalesce(info->'queues' ? %(queue)s, false) as reads,
               coalesce(info->'kinds' ? %(kind)s, false) as knows,
               (info->>'concurrency')::bigint as slots, (info->>'running')::bigint as running
        from taskledger.leases
        where info is not null
          and renewed_at > clock_timestamp() - make_interval(secs => lease_seconds)
    ) each_one
) w
