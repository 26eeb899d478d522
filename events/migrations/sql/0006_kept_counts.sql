-- How many tasks were in which state, at positions that the projector keeps: statistics of the past are these
-- and what the log changes between there and where they are asked for. `counts` is an array of
-- [tenant, queue, kind, status, tasks]. Made again from the log where it is missing.
create table taskledger.kept_counts (
    generation integer not null references taskledger.projection_generations on delete cascade,
    position bigint not null,
    counts jsonb not null,
    primary key (generation, position)
);
