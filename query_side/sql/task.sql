select {columns}
from {{read}}.tasks t
-- Progress is reported under `<task>:<attempt>`, and shown only while that attempt runs.
left join taskledger.leases l on t.status = 'running' and l.holder = t.id::text || ':' || t.attempt
where t.id = %(id)s
