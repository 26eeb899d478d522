-- Keys that text in the log is encrypted with, each wrapped by a master key that is not in the database.
create table taskledger.data_keys (
    id uuid primary key,
    tenant text not null,
    -- A keyed hash of the subject's name; empty for the tenant itself. Both lose it when they are erased, so
    -- that the name cannot be looked for, and gets a new key if it comes again.
    subject bytea,
    -- Which master key wraps it.
    master text,
    wrapped bytea,
    created_at timestamptz not null default clock_timestamp(),
    erased_at timestamptz,
    erased_by text,
    reason text,
    unique (tenant, subject),
    check (case when erased_at is null then num_nulls(subject, master, wrapped) = 0
                else num_nonnulls(subject, master, wrapped) = 0 end)
);
-- What ANALYZE finds would stay in the statistics when it is erased here.
alter table taskledger.data_keys
    alter column id set statistics 0,
    alter column subject set statistics 0,
    alter column wrapped set statistics 0;
