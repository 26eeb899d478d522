-- A webhook's deliveries by falling position, below the one given.
select i.tag, coalesce(c.position, 0) as checkpoint, d.webhook_id is not null as present, d.*,
       exists (
           select from taskledger.webhooks w
           where w.webhook_id = %(id)s and w.tenant = %(tenant)s and w.status <> 'deleted'
       ) as known
from taskledger.log_identity i
left join taskledger.checkpoints c on c.name = 'webhooks'
left join lateral (
    select webhook_id, position, task_id, topic, status, attempt, created_at, next_at, last_attempt_at,
           settled_at, last_status, last_error
    from taskledger.webhook_deliveries
    where webhook_id = %(id)s and position < %(before)s and {condition}
    order by position desc limit %(limit)s
) d on true
order by d.position desc
