-- Leases live outside the projection: a worker that has just started shows before any event of its.
select true as present, l.holder, l.info, l.lease_seconds, l.renewed_at
from taskledger.leases l
where l.info is not null
  and l.renewed_at > clock_timestamp() - make_interval(secs => l.lease_seconds)
