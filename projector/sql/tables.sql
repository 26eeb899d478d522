-- The read tables of one generation. Any change here makes a new schema version: older generations
-- are then folded by the releases that made them, and `taskledger rebuild` makes one of this shape.
--
-- Client data (payload, result, error) is JSON in bytea: jsonb would lose key order and cannot hold
-- \u0000, so that one task's result could stop the projector.
create schema {schema};

create table {schema}.tasks (
    id uuid primary key,
    created_position bigint not null,
    created_at timestamptz not null,
    kind text not null,
    queue text not null,
    tenant text not null,
    priority text not null,
    tags text[] not null,
    payload bytea not null,
    max_attempts bigint not null,
    timeout_seconds double precision not null,
    retry bytea,
    run_at timestamptz,
    correlation_id text,
    traceparent text,
    actor text,
    -- From here on what updates write.
    version bigint not null,
    position bigint not null,
    status text not null,
    queued_position bigint not null,
    queued_at timestamptz,
    due_at timestamptz,
    attempt bigint not null,
    failures bigint not null,
    isolated boolean not null,
    holder text,
    worker text,
    started_at timestamptz,
    finished_at timestamptz,
    cancel_requested boolean not null,
    cancel_by text,
    cancel_reason text,
    result bytea,
    error bytea,
    cause text
) with (fillfactor = 80);

-- Lists are newest first. created_at never falls as created_position rises, so that it can lead the
-- index: bounds on the time of creation are then bounds of the index scan.
create index tasks_newest on {schema}.tasks (created_at, created_position);
create index tasks_status on {schema}.tasks (status, created_at, created_position);
create index tasks_kind on {schema}.tasks (kind, created_at, created_position);
create index tasks_queue on {schema}.tasks (queue, created_at, created_position);
create index tasks_tags on {schema}.tasks using gin (tags);
create index tasks_waiting on {schema}.tasks (queue, priority, queued_position) where status = 'queued';

-- Kept in the transaction of the rows they count. No row stands for 0.
create table {schema}.counts (
    tenant text not null,
    queue text not null,
    kind text not null,
    status text not null,
    tasks bigint not null,
    primary key (tenant, queue, kind, status)
) with (fillfactor = 50);

-- Events per minute of recorded_at, for rates.
create table {schema}.activity (
    minute timestamptz primary key,
    created bigint not null,
    started bigint not null,
    completed bigint not null,
    failed bigint not null,
    dead bigint not null,
    cancelled bigint not null
) with (fillfactor = 50);

create table {schema}.queues (
    tenant text not null,
    queue text not null,
    version bigint not null,
    position bigint not null,
    paused boolean not null,
    changed_at timestamptz not null,
    changed_by text,
    reason text,
    primary key (tenant, queue)
);
