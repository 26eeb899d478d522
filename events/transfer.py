"""Out of one log and into another: see events.archive. Synchronous, on a connection of the caller's."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final
from uuid import UUID

import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow

from events.append import RecordedEvent
from events.archive import Archive, Archiver, Header
from events.binary_arrays import array
from events.errors import ArchiveRefused
from events.migrate import check_schema

_BATCH_EVENTS: Final = 2_000
_BATCH_BYTES: Final = 8 * 1024 * 1024

_COLUMNS: Final = (
    "originator_id, originator_version, topic, state, notification_id, recorded_at, tenant, kind, queue"
)
_ABOUT: Final = """
select i.tag, (select coalesce(max(notification_id), 0) from taskledger.task_events), clock_timestamp(),
       (select count(*) from taskledger.task_events
        where %(id)s::uuid is null or originator_id = %(id)s::uuid)
from taskledger.log_identity i
"""
_LOG: Final = f"select {_COLUMNS} from taskledger.task_events order by notification_id"
_STREAM: Final = f"""
select {_COLUMNS} from taskledger.task_events where originator_id = %(id)s::uuid order by originator_version
"""
_WEBHOOKS_BEGIN_LATER: Final = """
update taskledger.checkpoints set position = %s, event_position = null, event_at = null
where name = 'webhooks'
"""
"""An imported log tells nobody of its past, least of all the receivers of the system that it is from."""
_BEGIN: Final = "select taskledger.import_begin_v1()"
_INSERT: Final = """
select taskledger.import_events_v1(
    %b::int8[], %b::uuid[], %b::int8[], %b::text[], %b::bytea[], %b::timestamptz[], %b::text[], %b::text[],
    %b::text[]
)
"""


@dataclass(frozen=True, slots=True)
class Imported:
    tag: str
    """Of the log from now on."""
    events: int


def export(connection: Connection[TupleRow], task_id: UUID | None = None) -> Generator[bytes]:
    """The lines of an archive of the whole log, or of one task, as of one snapshot. An event at a time is
    held in memory. Raises ArchiveRefused where there is no such task, SchemaNotReady and psycopg errors."""
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    with connection.transaction():
        check_schema(connection)
        parameters = {"id": task_id}
        about = connection.execute(_ABOUT.encode(), parameters).fetchone()
        if about is None or (task_id is not None and not about[3]):
            raise ArchiveRefused("there is no task with this id")
        tag, head, now, events = about
        archiver = Archiver(Header("log" if task_id is None else "task", tag, head, events, now))
        yield archiver.header()
        statement = _LOG if task_id is None else _STREAM
        # Row by row as the server sends them, none of which is kept.
        for row in connection.cursor().stream(statement.encode(), parameters, binary=True):
            yield archiver.event(RecordedEvent.of_row(row))
        yield archiver.trailer()


def import_archive(connection: Connection[TupleRow], lines: Iterable[bytes]) -> Imported:
    """Fills the empty log with what was exported: the same events, times and versions, and of a whole log
    the same positions; those of a single task begin at 1, since a log has no gaps. The log gets a new tag.

    All or nothing, in one transaction that ends once the whole file has been found to be as it was written.
    Raises ArchiveRefused where it is not, where the log is not empty or a follower has read another one
    here, and where the role may not; SchemaNotReady and psycopg errors.
    """
    archive = Archive.of(lines)
    positions = count(1)
    stored = 0
    try:
        with connection.transaction():
            check_schema(connection)
            row = connection.execute(_BEGIN).fetchone()
            for batch in _batches(archive.events()):
                _insert(connection, batch, [next(positions) for _ in batch])
                stored += len(batch)
            connection.execute(_WEBHOOKS_BEGIN_LATER, (stored,))
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        raise ArchiveRefused(f"{error.diag.message_primary}: import into a database of its own") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise ArchiveRefused("only the role that migrates the database may import") from error
    except (psycopg.IntegrityError, psycopg.DataError, OverflowError) as error:
        raise ArchiveRefused(f"the file holds what no log can ({type(error).__name__})") from error
    return Imported("" if row is None else str(row[0]), stored)


def _batches(events: Iterable[RecordedEvent]) -> Generator[list[RecordedEvent]]:
    batch: list[RecordedEvent] = []
    size = 0
    for event in events:
        batch.append(event)
        size += len(event.state)
        if len(batch) >= _BATCH_EVENTS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _insert(
    connection: Connection[TupleRow], events: Sequence[RecordedEvent], positions: Sequence[int]
) -> None:
    connection.execute(
        _INSERT.encode(),
        (
            array("int8", positions),
            array("uuid", [event.originator_id for event in events]),
            array("int8", [event.originator_version for event in events]),
            array("text", [event.topic for event in events]),
            array("bytea", [event.state for event in events]),
            array("timestamptz", [event.recorded_at for event in events]),
            array("text", [event.tenant for event in events]),
            array("text", [event.kind for event in events]),
            array("text", [event.queue for event in events]),
        ),
    )
