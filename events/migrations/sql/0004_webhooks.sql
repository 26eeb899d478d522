-- Webhooks and what is sent to them: written by the process `webhooks` alone, which follows the log. The
-- first half of a webhook is its fold, the second what its endpoint did; neither holds a secret.
create table taskledger.webhooks (
    webhook_id uuid primary key,
    tenant text not null,
    version bigint not null,
    position bigint not null,
    status text not null check (status in ('enabled', 'disabled', 'deleted')),
    cause text,
    url text not null,
    types text[] not null,
    kinds text[] not null,
    queues text[] not null,
    tags text[] not null,
    description text,
    generation integer not null,
    rotated_at timestamptz,
    created_at timestamptz not null,
    created_position bigint not null,
    changed_at timestamptz not null,
    -- Events in (replay_after, replay_upto] are to be sent (again). Null: none.
    replay_after bigint,
    replay_upto bigint,
    -- Dead deliveries up to here are to be tried again.
    revive_upto bigint,
    -- In a row, whatever was sent. Nothing is sent before paused_until.
    failures integer not null default 0,
    failing_since timestamptz,
    paused_until timestamptz,
    last_attempt_at timestamptz,
    last_success_at timestamptz,
    last_status integer,
    last_error text
) with (fillfactor = 50);

-- One row for each event that a webhook asked for. Bodies are made from the log when they are sent: nothing
-- of a task lies here. task_id and version: the event's stream and its place there.
create table taskledger.webhook_deliveries (
    webhook_id uuid not null,
    position bigint not null,
    task_id uuid not null,
    version bigint not null,
    topic text not null,
    status text not null check (status in ('pending', 'delivered', 'dead')),
    attempt integer not null default 0,
    created_at timestamptz not null default clock_timestamp(),
    next_at timestamptz not null,
    last_attempt_at timestamptz,
    settled_at timestamptz,
    last_status integer,
    last_error text,
    primary key (webhook_id, position)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
create index webhook_deliveries_due on taskledger.webhook_deliveries (webhook_id, next_at, position)
where status = 'pending';
create index webhook_deliveries_order on taskledger.webhook_deliveries (webhook_id, task_id, position)
where status = 'pending';
create index webhook_deliveries_dead on taskledger.webhook_deliveries (webhook_id, position)
where status = 'dead';
create index webhook_deliveries_settled on taskledger.webhook_deliveries (settled_at)
where status <> 'pending';

-- Nothing before this can be an event of a webhook.
insert into taskledger.checkpoints (name, position)
select 'webhooks', coalesce(max(notification_id), 0) from taskledger.task_events;
