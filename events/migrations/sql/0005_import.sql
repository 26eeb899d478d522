-- The way into an empty log for what another log exported, with position and time as they were. It runs with
-- the caller's rights, so that only who may write the table (the owner, who migrates) can use it, and is
-- called within one transaction: once to begin, then for each part of the file.
create function taskledger.import_begin_v1(out tag text)
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    -- As an append: nobody else gets in before the end of this transaction.
    perform pg_advisory_xact_lock(7311461898370);
    if exists (select from taskledger.task_events) then
        raise exception 'the log is not empty' using errcode = 'object_not_in_prerequisite_state';
    end if;
    if exists (select from taskledger.checkpoints c where c.position > 0) then
        raise exception 'a follower has read another log here' using errcode = 'object_not_in_prerequisite_state';
    end if;
    -- Positions of the log that this database had, if any client holds one, are not positions of this one.
    update taskledger.log_identity i set tag = substr(md5(gen_random_uuid()::text), 1, 8)
    returning i.tag into import_begin_v1.tag;
end
$$;
revoke all on function taskledger.import_begin_v1 from public;

create function taskledger.import_events_v1(
    p_position bigint[], p_id uuid[], p_version bigint[], p_topic text[], p_state bytea[],
    p_recorded_at timestamptz[], p_tenant text[], p_kind text[], p_queue text[]
) returns void
language sql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
    insert into taskledger.task_events
        (notification_id, originator_version, recorded_at, originator_id, topic, tenant, kind, queue, state)
    select i.position, i.version, i.recorded_at, i.id, i.topic, i.tenant, i.kind, i.queue, i.state
    from unnest(p_position, p_id, p_version, p_topic, p_state, p_recorded_at, p_tenant, p_kind, p_queue)
         as i(position, id, version, topic, state, recorded_at, tenant, kind, queue);
    select pg_notify('taskledger_log', p_position[cardinality(p_position)]::text);
$$;
revoke all on function taskledger.import_events_v1 from public;
