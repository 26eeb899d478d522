-- The events of some tasks up to a position, task by task; of one with a parked event only what lies before
-- it, as in the read tables.
select e.originator_id, e.originator_version, e.topic, e.state, e.notification_id as position, e.recorded_at,
       e.tenant, e.kind, e.queue
from taskledger.task_events e
where e.originator_id = any(%(ids)s) and e.notification_id <= %(position)s
  and not exists (
      select from taskledger.parked_events p
      where p.projection = 'tasks' and p.originator_id = e.originator_id and p.position <= e.notification_id
  )
order by e.originator_id, e.originator_version
