"""The log's SQL: one place for every adapter, synchronous or not. Parameters are bound in binary."""

from typing import Final

APPEND: Final = """
select head, recorded_at, conflicts, replayed, replayed_first, replayed_last, replayed_fingerprint
from taskledger.append_v2(
    %b::int[], %b::uuid[], %b::bigint[], %b::text[], %b::bytea[], %b::text[], %b::text[], %b::text[],
    %b::int[], %b::text[], %b::text[], %b::text[], %b::bytea[], %b::text
)
"""
"""Parameters: see events.append_parameters; answer: see events.append."""

LOG_CHANNEL: Final = "taskledger_log"
"""append_v2 notifies it: see events.notice. A hint: whoever listens polls as well."""

_COLUMNS: Final = (
    "originator_id, originator_version, topic, state, notification_id, recorded_at, tenant, kind, queue"
)
READ_STREAM: Final = f"""
select {_COLUMNS} from taskledger.task_events where originator_id = %b order by originator_version
"""
READ_STREAMS: Final = f"""
select {_COLUMNS} from taskledger.task_events where originator_id = any(%b)
order by originator_id, originator_version
"""
READ_VERSIONS: Final = f"""
select {_COLUMNS} from taskledger.task_events
where originator_id = %b and originator_version > %b::bigint and originator_version <= %b::bigint
order by originator_version limit %b::bigint
"""
READ_VERSIONS_DOWN: Final = f"""
select {_COLUMNS} from taskledger.task_events
where originator_id = %b and originator_version > %b::bigint and originator_version <= %b::bigint
order by originator_version desc limit %b::bigint
"""
READ_AFTER: Final = f"""
select {_COLUMNS} from taskledger.task_events
where notification_id > %b::bigint and notification_id <= %b::bigint
order by notification_id limit %b::bigint
"""
READ_TOPICS_AFTER: Final = f"""
select {_COLUMNS} from taskledger.task_events
where notification_id > %b::bigint and notification_id <= %b::bigint and topic = any(%b::text[])
order by notification_id limit %b::bigint
"""
FIND_EVENTS: Final = f"""
select {_COLUMNS} from taskledger.task_events
where (originator_id, originator_version) in (select * from unnest(%b::uuid[], %b::bigint[]))
"""
HEAD: Final = "select coalesce(max(notification_id), 0) from taskledger.task_events"
TAG: Final = "select tag from taskledger.log_identity"

HIGHEST: Final = 2**63 - 1
"""Stands for "no upper bound" where a statement takes one."""
