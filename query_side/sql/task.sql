-- One row if there is the task, or a parked event of it: see `parked_position`.
select t.id is not null or p.position is not null as present, {columns}, p.position as parked_position
from (
    select min(position) as position from taskledger.parked_events
    where projection = 'tasks' and originator_id = %(id)s and tenant = %(tenant)s
) p
left join {{read}}.tasks t on t.id = %(id)s and t.tenant = %(tenant)s
-- Progress is reported under `<task>:<attempt>`, and shown only while that attempt runs.
left join taskledger.leases l on t.status = 'running' and l.holder = t.id::text || ':' || t.attempt
