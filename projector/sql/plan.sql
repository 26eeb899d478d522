-- What a rebuild has to fold into this generation, and what of it is done. In the generation's own schema,
-- so that it is dropped with it; and itself dropped in the transaction that sets the first checkpoint.
create table {schema}.plan (
    upto bigint not null,
    -- By which the log is known again, should it be restored meanwhile: the event there, and the tag.
    upto_at timestamptz not null,
    log_tag text not null,
    -- Positions that the fold passes over.
    parked bigint[] not null,
    -- The indexes that were taken away, by name: what makes them, and the primary key.
    build json not null,
    attach json not null
);

-- A range is one transaction: its rows, its counters, and here how many events it had.
create table {schema}.plan_ranges (
    first uuid primary key,
    last uuid not null,
    events bigint
);
