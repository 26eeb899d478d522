-- Of the projection `usage`.
select true as present, u.day, u.tag, u.completed, u.attempts, u.microseconds from {read}.usage u
where u.tenant = %(tenant)s and u.day between %(first)s::date and %(last)s::date
and (%(tag)s::text is null or u.tag = %(tag)s::text)
order by u.day, u.tag limit %(limit)s::int8
