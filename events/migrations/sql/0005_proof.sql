-- The Merkle tree over the log, in a schema of its own: see events/merkle.py. Its size is the checkpoint
-- `sealed` of taskledger.checkpoints, moved in the transaction that writes tiles and head.
create schema taskledger_proof;

create table taskledger_proof.tiles (
    level smallint not null,
    number bigint not null,
    -- Up to 256 hashes of 32 bytes; only the last tile of each level has fewer, and is written again.
    hashes bytea not null check (octet_length(hashes) between 32 and 8192 and octet_length(hashes) % 32 = 0),
    primary key (level, number)
) with (fillfactor = 90);
-- Hashes do not compress.
alter table taskledger_proof.tiles alter column hashes set storage external;

-- The newest head, and the last one of each hour before it. The hour is the last event's, which never falls.
create table taskledger_proof.heads (
    hour timestamptz primary key,
    size bigint not null,
    note text not null
);
