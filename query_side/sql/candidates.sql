-- Tasks that may belong to a page of the past, newest first: those that went on since then, whatever they
-- are now, and those that did not, if they are what is looked for. The last row looked at comes along, so
-- that the next page can begin after it. Bounded in rows looked at, in tasks, and in bytes of client data.
select true as present, c.id, c.created_at, c.created_position, c.possible, c.looked_at, c.possibles,
       c.number <= %(most)s and c.before < %(page_bytes)s as is_kept
from (
    select p.*, count(*) over () as looked_at,
           count(*) filter (where p.possible) over () as possibles,
           row_number() over newest as row,
           count(*) filter (where p.possible) over newest as number,
           coalesce(sum(p.bytes) filter (where p.possible) over newest, 0) - p.bytes as before
    from (
        select t.id, t.created_at, t.created_position,
               t.position > %(position)s or {possible} as possible,
               octet_length(t.payload) + coalesce(octet_length(t.result), 0) as bytes
        from {{read}}.tasks t
        where {conditions}
        order by t.created_at desc, t.created_position desc
        limit %(most_looked_at)s
    ) p
    window newest as (order by p.created_at desc, p.created_position desc)
) c
where c.row = c.looked_at or (c.possible and c.number <= %(most)s and c.before < %(page_bytes)s)
