select true as present, c.queue, c.kind, c.status, sum(c.tasks)::bigint as tasks
from {read}.counts c where c.tenant = %(tenant)s group by c.queue, c.kind, c.status
