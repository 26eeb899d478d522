-- How tasks were created, as far as tags go: the state only where its text can hold a field `tags`, until
-- the limit of bytes is passed.
select s.* from (
    select n.*, sum(coalesce(octet_length(n.state), 0)) over (order by n.originator_id)
                - coalesce(octet_length(n.state), 0) as before
    from (
        select originator_id, originator_version, topic,
               case when position('"tags":'::bytea in state) > 0 then state end as state,
               notification_id as position, recorded_at, tenant, kind, queue
        from taskledger.task_events
        where originator_id = any(%(ids)s) and originator_version <= 1 and topic = 'TaskCreated'
    ) n
) s where s.before < %(page_bytes)s
