"""The log as the eventsourcing library sees it: recorders and the factory that builds them.

`PERSISTENCE_MODULE=events.recorder` with `POSTGRES_DSN` lets the library's Application run on the log.
Synchronous: used by the projector, rebuild and verify. It writes by the same append function as
events.postgres_log and, unlike the library's own recorder, never pipelines: that one hangs for ever
once a call carries about a megabyte.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final
from uuid import UUID

import psycopg
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    InfrastructureFactory,
    IntegrityError,
    Mapper,
    NotSupportedError,
    ProcessRecorder,
    StoredEvent,
    Subscription,
    Transcoder,
)
from eventsourcing.utils import Environment, EnvType
from psycopg import Connection
from psycopg.rows import TupleRow

from events import statements
from events.append import (
    AppendCommand,
    Appended,
    Outcome,
    RecordedEvent,
    StreamAppend,
    first_events,
    outcomes_of,
    recognise_own,
)
from events.append_parameters import append_parameters
from events.codec import EventMapper, OrjsonTranscoder
from events.connections import Connect, Connections
from events.deadline import after
from events.errors import ConfigurationError
from events.ids import as_uuid
from events.subscription import LogSubscription
from events.tenants import DEFAULT_TENANT
from events.tracking import PostgresTrackingRecorder

BUDGET_SECONDS: Final = 5.0


class PostgresTaskRecorder(ApplicationRecorder):
    """Thread-safe. Every call has one deadline over all its tries, `budget_seconds` after it began;
    opening a connection can exceed it by the connection's own `connect_timeout`.

    Errors are the library's, and those of events.errors at once: past the deadline OperationalError,
    which is a StoreUnavailable; on a database that is not migrated ProgrammingError, which is a
    SchemaNotReady. Close it after use.
    """

    def __init__(self, connect: Connect, *, budget_seconds: float = BUDGET_SECONDS) -> None:
        self._connections = Connections(connect)
        self._budget = budget_seconds

    def insert_events(
        self,
        stored_events: Sequence[StoredEvent],
        *,
        tenant: str = DEFAULT_TENANT,
        kind: str = "",
        queue: str = "",
        **_: Any,
    ) -> Sequence[int] | None:
        """Stores all events or none, durably, and returns their positions; None for no events.

        Raises IntegrityError when a version is taken or leaves a gap; never for our own event, met
        again after a lost connection. After OperationalError the events may be stored.
        """
        if not stored_events:
            return None
        streams = [
            StreamAppend(as_uuid(originator_id), list(events), tenant, kind, queue)
            for originator_id, events in groupby(stored_events, key=lambda e: e.originator_id)
        ]
        outcome = self._append(AppendCommand(streams))
        if not isinstance(outcome, Appended):
            raise IntegrityError("a version is taken, or does not follow the stored one")
        return list(range(outcome.first_position, outcome.last_position + 1))

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> list[StoredEvent]:
        statement = statements.READ_VERSIONS_DOWN if desc else statements.READ_VERSIONS
        parameters = (
            as_uuid(originator_id),
            -1 if gt is None else gt,
            statements.HIGHEST if lte is None else lte,
            statements.HIGHEST if limit is None else limit,
        )
        return [StoredEvent(*row[:4]) for row in self._read(statement, parameters)]

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> list[RecordedEvent]:
        lowest = 0 if start is None else start - 1 if inclusive_of_start else start
        if not topics:
            return self.select_recorded(lowest, limit, stop)
        highest = statements.HIGHEST if stop is None else stop
        return _events(self._read(statements.READ_TOPICS_AFTER, (lowest, highest, list(topics), limit)))

    def select_recorded(self, after: int, limit: int, upto: int | None = None) -> list[RecordedEvent]:
        """At most `limit` events above position `after` (and not above `upto`), by rising position."""
        highest = statements.HIGHEST if upto is None else upto
        return _events(self._read(statements.READ_AFTER, (after, highest, limit)))

    def max_notification_id(self) -> int | None:
        return int(self._read(statements.HEAD, ())[0][0]) or None

    def tag(self) -> str:
        """Which log this is, read anew each time: see events.position."""
        return str(self._read(statements.TAG, ())[0][0])

    def subscribe(
        self, gt: int | None = None, topics: Sequence[str] = ()
    ) -> Subscription[ApplicationRecorder]:
        """Holds a connection of its own to listen on until it is stopped."""
        return LogSubscription(self, self._connections.open, gt, topics)

    def close(self) -> None:
        self._connections.close()

    def _append(self, command: AppendCommand) -> Outcome:
        deadline = after(self._budget)
        parameters = append_parameters([command])

        def call(connection: Connection[TupleRow]) -> list[TupleRow]:
            return _fetch(connection, statements.APPEND, parameters)

        rows, repeated = self._connections.repeat(call, deadline)
        outcomes = outcomes_of([command], rows[0])
        suspects = first_events([command], outcomes) if repeated else []
        if suspects:
            ids, versions = [e.originator_id for e in suspects], [e.originator_version for e in suspects]
            stored = self._read(statements.FIND_EVENTS, (ids, versions), deadline)
            outcomes = recognise_own([command], outcomes, _events(stored))
        return outcomes[0]

    def _read(
        self, statement: str, parameters: Sequence[Any], deadline: float | None = None
    ) -> list[TupleRow]:
        def work(connection: Connection[TupleRow]) -> list[TupleRow]:
            return _fetch(connection, statement, parameters)

        if deadline is None:
            deadline = after(self._budget)
        return self._connections.repeat(work, deadline)[0]


class Factory(InfrastructureFactory[PostgresTrackingRecorder]):
    """Builds on the migrated database of `POSTGRES_DSN`; creates no tables. The mapper is always ours:
    events keep their explicit topics and compact form whatever the environment says."""

    POSTGRES_DSN = "POSTGRES_DSN"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        dsn = self.env.get(self.POSTGRES_DSN)
        if not dsn:
            raise ConfigurationError(f"{self.POSTGRES_DSN} is not set")
        self._dsn = dsn
        self._recorders: list[PostgresTaskRecorder | PostgresTrackingRecorder] = []

    def mapper(
        self,
        transcoder: Transcoder | None = None,  # noqa: ARG002  the library's signature
        mapper_class: type[Mapper[Any]] | None = None,  # noqa: ARG002  the library's signature
    ) -> Mapper[Any]:
        return EventMapper()

    def transcoder(self) -> Transcoder:
        return OrjsonTranscoder()

    def application_recorder(self) -> PostgresTaskRecorder:
        recorder = PostgresTaskRecorder(self._connect)
        self._recorders.append(recorder)
        return recorder

    def tracking_recorder(
        self, tracking_recorder_class: type[PostgresTrackingRecorder] | None = None
    ) -> PostgresTrackingRecorder:
        recorder = (tracking_recorder_class or PostgresTrackingRecorder)(self._connect)
        self._recorders.append(recorder)
        return recorder

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:  # noqa: ARG002  as above
        raise NotSupportedError("the log keeps no snapshots: a task has few events")

    def process_recorder(self) -> ProcessRecorder:
        raise NotSupportedError("a projection keeps its checkpoint with its rows: see events.tracking")

    def close(self) -> None:
        for recorder in self._recorders:
            recorder.close()

    def _connect(self) -> Connection[TupleRow]:
        return psycopg.connect(
            self._dsn, autocommit=True, application_name="taskledger-recorder", connect_timeout=5
        )


def _fetch(connection: Connection[TupleRow], statement: str, parameters: Sequence[Any]) -> list[TupleRow]:
    cursor = connection.cursor(binary=True)
    cursor.execute(statement.encode(), parameters, prepare=True)
    return cursor.fetchall()


def _events(rows: Sequence[TupleRow]) -> list[RecordedEvent]:
    return [RecordedEvent.of_row(row) for row in rows]
