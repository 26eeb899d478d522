-- Where statistics of the past may begin: the kept points next to a position, and the counters themselves.
select true as present, k.position, k.counts
from (
    (
        select c.position, c.counts from taskledger.kept_counts c
        where c.generation = live.generation and c.position <= %(position)s::bigint
        order by c.position desc limit 1
    )
    union all
    (
        select c.position, c.counts from taskledger.kept_counts c
        where c.generation = live.generation and c.position > %(position)s::bigint
        order by c.position limit 1
    )
    union all
    select live.checkpoint,
           coalesce((select jsonb_agg(jsonb_build_array(tenant, queue, kind, status, tasks))
                     from {read}.counts), '[]')
) k
