-- One aggregate's events with the log's head and tag, in one snapshot.
select i.tag, h.head, e.originator_id is not null as present, e.originator_id, e.originator_version, e.topic,
       e.state, e.notification_id as position, e.recorded_at, e.tenant, e.kind, e.queue
from taskledger.log_identity i
cross join (select coalesce(max(notification_id), 0) as head from taskledger.task_events) h
left join taskledger.task_events e on e.originator_id = %(id)s and e.tenant = %(tenant)s
order by e.originator_version
