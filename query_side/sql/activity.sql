-- Whole minutes only: the present one has not seen all of its events yet. `time`: null is now.
select true as present, w.minutes,
       coalesce(sum(a.created), 0)::bigint as created,
       coalesce(sum(a.started), 0)::bigint as started,
       coalesce(sum(a.completed), 0)::bigint as completed,
       coalesce(sum(a.failed), 0)::bigint as failed,
       coalesce(sum(a.dead), 0)::bigint as dead,
       coalesce(sum(a.cancelled), 0)::bigint as cancelled,
       (select coalesce(max(e.notification_id), 0) from taskledger.task_events e) as head
from (values (1), (5), (60)) w(minutes)
left join {read}.activity a
    on a.minute >= date_trunc('minute', coalesce(%(time)s::timestamptz, now())) - make_interval(mins => w.minutes)
   and a.minute < date_trunc('minute', coalesce(%(time)s::timestamptz, now()))
group by w.minutes
