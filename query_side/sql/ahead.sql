-- Tasks that a queue's workers take before one: all of a higher priority, and those of its own that were
-- queued before. Counted along the index, up to a limit in each lane: a million of them cost no more. It
-- is the order that keeps the planner from gathering all of them in a bitmap first.
select true as present, p.priority, n.tasks
from unnest(%(higher)s::text[] || %(priority)s::text) p(priority)
cross join lateral (
    select count(*) as tasks from (
        select from {read}.tasks t
        where t.queue = %(queue)s and t.status = 'queued' and t.priority = p.priority
          and t.tenant = %(tenant)s
          and (p.priority <> %(priority)s::text or t.queued_position < %(queued_position)s)
        order by t.queued_position limit %(limit)s
    ) counted
) n
