-- What is not settled yet: the dispatcher's own projection, so that no task waits for the query side.
-- Holds no payload, and no row of a task that is completed, dead, cancelled or discarded.
-- Its checkpoint is the row 'outstanding' of taskledger.checkpoints.
create table taskledger.outstanding (
    task_id uuid primary key,
    version bigint not null,
    state text not null,
    tenant text not null,
    queue text not null,
    kind text not null,
    priority text not null,
    -- The id of its stream entry is <queued_position>-1.
    queued_position bigint not null,
    queued_at timestamptz,
    due_at timestamptz,
    holder text,
    attempt bigint not null,
    timeout_seconds double precision not null,
    timeout_at timestamptz,
    isolated boolean not null,
    cancel_requested boolean not null,
    -- An event of the task means nothing to this release: the row stays as it was before that event.
    unreadable boolean not null
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
create index outstanding_due on taskledger.outstanding (due_at, task_id) where due_at is not null;
create index outstanding_queued on taskledger.outstanding (queue, queued_position) where state = 'queued';
create index outstanding_holder on taskledger.outstanding (holder) where holder is not null;
create index outstanding_timeout on taskledger.outstanding (timeout_at) where timeout_at is not null;
create index outstanding_unreadable on taskledger.outstanding (task_id) where unreadable;

-- One row: the tag of the log that the table was folded from. Another tag in log_identity means that
-- the database was restored, and the table is folded anew.
create table taskledger.outstanding_log (
    only_row boolean primary key default true check (only_row),
    tag text not null
);
