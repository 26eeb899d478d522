-- The newest head of the tree over the log.
select i.tag, h.note
from taskledger.log_identity i
left join lateral (select note from taskledger_proof.heads order by size desc limit 1) h on true
