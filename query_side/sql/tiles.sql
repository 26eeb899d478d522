-- Tiles of the tree over the log, by level and number.
select level, number, hashes from taskledger_proof.tiles
where (level, number) in (select * from unnest(%(levels)s::int4[], %(numbers)s::int8[]))
