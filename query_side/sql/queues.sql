-- Depths from the counters, the oldest by one look into an index for each priority: nothing here counts tasks.
select true as present, n.queue, coalesce(c.statuses, '{{}}') as statuses, coalesce(c.tasks, '{{}}') as tasks,
       o.queued_at as oldest_queued_at,
       extract(epoch from clock_timestamp() - o.queued_at)::double precision as oldest_age_seconds,
       coalesce(q.paused, false) as paused,
       case when q.paused then q.changed_at end as paused_at,
       case when q.paused then q.changed_by end as paused_by,
       case when q.paused then q.reason end as paused_reason
from (
    select queue from {read}.counts where tenant = %(tenant)s
    union select queue from {read}.queues where tenant = %(tenant)s
) n
left join lateral (
    select array_agg(s.status) as statuses, array_agg(s.tasks) as tasks from (
        select c.status, sum(c.tasks)::bigint as tasks from {read}.counts c
        where c.queue = n.queue and c.tenant = %(tenant)s group by c.status
    ) s
) c on true
left join lateral (
    select min(first.queued_at) as queued_at from (values ('high'), ('normal'), ('low')) p(priority)
    cross join lateral (
        select t.queued_at from {read}.tasks t
        where t.queue = n.queue and t.status = 'queued' and t.priority = p.priority
          and t.tenant = %(tenant)s
        order by t.queued_position limit 1
    ) first
) o on true
left join {read}.queues q on q.queue = n.queue and q.tenant = %(tenant)s
