-- The one way into the log. One autocommit statement, so that no client can hold the lock.
--
-- Per event:  command number (rising from 0), stream, version, topic, state, tenant, kind, queue.
-- Per key:    command number, tenant, operation, key, fingerprint.
-- Notice:     what to notify beside the positions if nothing is refused (events.notice); null for nothing.
-- A command is refused whole if any of its streams does not go on exactly at the stored head;
-- its neighbours in the group are stored all the same.
create function taskledger.append_v2(
    p_command int[], p_id uuid[], p_version bigint[], p_topic text[], p_state bytea[],
    p_tenant text[], p_kind text[], p_queue text[],
    k_command int[], k_tenant text[], k_operation text[], k_key text[], k_fingerprint bytea[],
    p_notice text,
    out head bigint, out recorded_at timestamptz, out conflicts int[],
    out replayed int[], out replayed_first bigint[], out replayed_last bigint[],
    out replayed_fingerprint bytea[]
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- A plan made while the table was empty would scan it for ever: plans are kept for the session. And one for
-- arrays this short would be made anew at each call, which takes longer than to run it.
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
    refused int[];
    stored bigint;
begin
    -- Held until the commit is visible, so positions become visible in order. An advisory lock and
    -- not a table lock: that one would need more rights and wait behind VACUUM.
    perform pg_advisory_xact_lock(7311461898370);

    -- From here each statement has a snapshot newer than every earlier append.
    select e.notification_id, e.recorded_at into head, recorded_at
    from taskledger.task_events e order by e.notification_id desc limit 1;
    head := coalesce(head, 0);
    recorded_at := greatest(recorded_at, clock_timestamp());

    select coalesce(array_agg(distinct s.command), '{}') into conflicts
    from (
        select n.command, n.id, min(n.version) as first, bool_and(n.follows) as follow
        from (
            -- Each version is the one before plus 1, in the order given: that is the order of positions.
            select i.command, i.id, i.version,
                   coalesce(i.version = 1 + lag(i.version) over (partition by i.command, i.id order by i.n),
                            true) as follows
            from unnest(p_command, p_id, p_version) with ordinality as i(command, id, version, n)
        ) n
        group by n.command, n.id
    ) s
    left join lateral (
        select e.originator_version as head_version
        from taskledger.task_events e where e.originator_id = s.id
        order by e.originator_version desc limit 1
    ) h on true
    where not s.follow
       or case when h.head_version is null then s.first not in (0, 1)
               else s.first <> h.head_version + 1 end;

    replayed := '{}'; replayed_first := '{}'; replayed_last := '{}'; replayed_fingerprint := '{}';
    if cardinality(k_command) > 0 then
        select coalesce(array_agg(k.command), '{}'), coalesce(array_agg(t.first_position), '{}'),
               coalesce(array_agg(t.last_position), '{}'), coalesce(array_agg(t.fingerprint), '{}')
        into replayed, replayed_first, replayed_last, replayed_fingerprint
        from unnest(k_command, k_tenant, k_operation, k_key) as k(command, tenant, operation, key)
        join taskledger.idempotency_keys t using (tenant, operation, key);
        conflicts := array(select unnest(conflicts) except select unnest(replayed));
    end if;
    refused := conflicts || replayed;

    insert into taskledger.task_events
        (notification_id, originator_version, recorded_at, originator_id, topic, tenant, kind, queue, state)
    select append_v2.head + row_number() over (order by i.n), i.version, append_v2.recorded_at, i.id,
           i.topic, i.tenant, i.kind, i.queue, i.state
    from unnest(p_command, p_id, p_version, p_topic, p_state, p_tenant, p_kind, p_queue)
         with ordinality as i(command, id, version, topic, state, tenant, kind, queue, n)
    where i.command <> all (refused);
    get diagnostics stored = row_count;

    if cardinality(k_command) > cardinality(replayed) then
        insert into taskledger.idempotency_keys
            (tenant, operation, key, fingerprint, first_position, last_position, recorded_at)
        select k.tenant, k.operation, k.key, k.fingerprint,
               append_v2.head + p.first, append_v2.head + p.last, append_v2.recorded_at
        from unnest(k_command, k_tenant, k_operation, k_key, k_fingerprint)
             as k(command, tenant, operation, key, fingerprint)
        join (
            select a.command, min(a.n) as first, max(a.n) as last
            from (
                select i.command, row_number() over (order by i.n) as n
                from unnest(p_command) with ordinality as i(command, n)
                where i.command <> all (refused)
            ) a group by a.command
        ) p using (command);
    end if;

    if stored > 0 then
        -- A hint that wakes followers; they poll as well. The words are about the group as it was given.
        perform pg_notify('taskledger_log', (head + stored)::text || case
            when p_notice is not null and cardinality(refused) = 0 then ' ' || stored || ' ' || p_notice
            else '' end);
    end if;
end
$$;
revoke all on function taskledger.append_v2 from public;

-- The release before calls this one. It stays until no process of that release is left.
create or replace function taskledger.append_v1(
    p_command int[], p_id uuid[], p_version bigint[], p_topic text[], p_state bytea[],
    p_tenant text[], p_kind text[], p_queue text[],
    k_command int[], k_tenant text[], k_operation text[], k_key text[], k_fingerprint bytea[],
    out head bigint, out recorded_at timestamptz, out conflicts int[],
    out replayed int[], out replayed_first bigint[], out replayed_last bigint[],
    out replayed_fingerprint bytea[]
)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    select * from taskledger.append_v2(
        p_command, p_id, p_version, p_topic, p_state, p_tenant, p_kind, p_queue,
        k_command, k_tenant, k_operation, k_key, k_fingerprint, null
    )
$$;

-- Whoever may append may go on appending.
do $$
declare
    grantee oid;
begin
    for grantee in
        select a.grantee from pg_proc p, aclexplode(p.proacl) a
        where p.oid = 'taskledger.append_v1'::regproc and a.grantee <> 0 and a.privilege_type = 'EXECUTE'
    loop
        execute 'grant execute on function taskledger.append_v2 to ' || grantee::regrole;
    end loop;
end
$$;
