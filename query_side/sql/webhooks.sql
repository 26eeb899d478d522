-- Webhooks with what their endpoints did, as far as the process `webhooks` is: `checkpoint`. What waits is
-- counted up to 10,000. One webhook or all of a tenant.
select i.tag, coalesce(c.position, 0) as checkpoint, h.head, w.webhook_id is not null as present, w.*,
       extract(epoch from clock_timestamp() - p.oldest)::float8 as oldest_pending_seconds,
       n.pending, d.dead
from taskledger.log_identity i
cross join (select coalesce(max(notification_id), 0) as head from taskledger.task_events) h
left join taskledger.checkpoints c on c.name = 'webhooks'
left join taskledger.webhooks w on w.tenant = %(tenant)s and w.status <> 'deleted'
    and (%(id)s::uuid is null or w.webhook_id = %(id)s)
left join lateral (
    select min(created_at) as oldest from (
        select created_at from taskledger.webhook_deliveries
        where webhook_id = w.webhook_id and status = 'pending' order by webhook_id, next_at limit 10000
    ) o
) p on true
left join lateral (
    select count(*)::int as pending from (
        select from taskledger.webhook_deliveries
        where webhook_id = w.webhook_id and status = 'pending' limit 10000
    ) x
) n on true
left join lateral (
    select count(*)::int as dead from (
        select from taskledger.webhook_deliveries
        where webhook_id = w.webhook_id and status = 'dead' limit 10000
    ) y
) d on true
order by w.created_position
