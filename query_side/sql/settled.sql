-- Which of the tasks that somebody waits for no worker will touch any more.
select true as present, t.id from {read}.tasks t
where t.id = any(%(ids)s) and t.status in ('completed', 'dead', 'cancelled', 'discarded')
