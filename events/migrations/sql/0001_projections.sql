-- Which generations of each projection exist. A generation is one set of read tables, in a schema of
-- its own, with its own checkpoint (`<projection>/<generation>` in taskledger.checkpoints). Readers
-- join this table in the statement that reads the data, so a switch cannot pass between the two.
create table taskledger.projection_generations (
    generation integer generated always as identity primary key,
    projection text not null,
    -- Hash of the tables' definition and the fold's version: which releases can fold it.
    schema_version text not null,
    state text not null check (state in ('building', 'live', 'retired')),
    created_at timestamptz not null default clock_timestamp(),
    switched_at timestamptz
);
create unique index projection_generations_live on taskledger.projection_generations (projection)
where state = 'live';
