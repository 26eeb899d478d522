-- One page, newest first, from the row after the cursor. A page also ends once its payloads and results
-- pass the limit of bytes; `matched` tells that there was more.
select true as present, {columns}, t.matched
from (
    select p.*, count(*) over () as matched,
           sum(p.bytes) over (order by p.created_at desc, p.created_position desc) - p.bytes as before
    from (
        select t.*, octet_length(t.payload) + coalesce(octet_length(t.result), 0) as bytes
        from {{read}}.tasks t
        where {conditions}
        order by t.created_at desc, t.created_position desc
        limit %(limit)s
    ) p
) t
left join taskledger.leases l on t.status = 'running' and l.holder = t.id::text || ':' || t.attempt
where t.before < %(page_bytes)s
