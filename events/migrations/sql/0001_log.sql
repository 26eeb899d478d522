-- The log, and what belongs to it.
create schema if not exists taskledger;

-- One row: which log this is. The tag is part of every position token; a restore draws a new one.
create table taskledger.log_identity (
    only_row boolean primary key default true check (only_row),
    tag text not null check (tag ~ '^[0-9a-z]{8}$'),
    created_at timestamptz not null default clock_timestamp()
);
insert into taskledger.log_identity (tag) values (substr(md5(gen_random_uuid()::text), 1, 8));

-- Nothing but the primary key is unique, so that the table can be partitioned by originator_id.
-- Positions are unique and without gaps because append_v1 draws them under its lock.
create table taskledger.task_events (
    notification_id bigint not null,
    originator_version bigint not null,
    recorded_at timestamptz not null,
    originator_id uuid not null,
    topic text not null,
    tenant text not null,
    kind text not null,
    queue text not null,
    state bytea not null,
    primary key (originator_id, originator_version)
) with (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
create index task_events_position on taskledger.task_events (notification_id);

-- Written by the append itself: the row is both the lock and the memory of a key.
create table taskledger.idempotency_keys (
    tenant text not null,
    operation text not null,
    key text not null,
    fingerprint bytea not null,
    first_position bigint not null,
    last_position bigint not null,
    recorded_at timestamptz not null,
    primary key (tenant, operation, key)
);
create index idempotency_keys_age on taskledger.idempotency_keys (recorded_at);

-- Liveness of holders and the last progress of attempts: the only state outside the log.
-- Unlogged: a database crash empties it, which costs one lease time and nothing else.
create unlogged table taskledger.leases (
    holder text primary key,
    counter bigint not null default 0,
    lease_seconds double precision not null,
    progress double precision,
    note text,
    info jsonb,
    renewed_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
