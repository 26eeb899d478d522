-- Events that no release at hand can apply, and that an operator has told a projection to pass over, so
-- that it goes on. Of a task every later event is passed over as well: its row stays as it was before.
create table taskledger.parked_events (
    projection text not null,
    position bigint not null,
    originator_id uuid not null,
    originator_version bigint not null,
    topic text not null,
    tenant text not null,
    reason text not null,
    parked_by text not null,
    parked_at timestamptz not null default clock_timestamp(),
    primary key (projection, position)
);
create index parked_events_originator on taskledger.parked_events (originator_id);

-- When the event at `event_position` was recorded, by which a follower knows the log again: one that was
-- restored to an older state and has grown since holds another event there. Null: the writer did not say.
alter table taskledger.checkpoints
    add column event_position bigint,
    add column event_at timestamptz;
