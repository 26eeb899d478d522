-- How far each follower of the log has got: written in the transaction of what it writes, so the two
-- cannot part. No row stands for position 0.
create table taskledger.checkpoints (
    name text primary key,
    position bigint not null check (position >= 0),
    updated_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
