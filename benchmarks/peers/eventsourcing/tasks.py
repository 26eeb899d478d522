"""The aggregate, its application and its projection, as the documentation of the library does it."""

import os
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

STREAM, GROUP = "tasks", "workers"
READ_TABLE = "v_tasks"


class Task(Aggregate):
    @event("Requested")
    def __init__(self, kind: str, x: int, y: int) -> None:
        self.kind = kind
        self.x = x
        self.y = y
        self.status = "pending"
        self.sum: int | None = None

    @event("Started")
    def start(self) -> None:
        self.status = "running"

    @event("Completed")
    def complete(self, sum: int) -> None:  # noqa: A002  a field of the event
        self.status = "completed"
        self.sum = sum


class Tasks(Application[UUID]):
    """Needs no methods but those of the library."""


class ReadTable(PostgresTrackingRecorder):
    """Each change and the position of its event are committed together."""

    def __init__(self, datastore: PostgresDatastore, **kwargs: object) -> None:
        super().__init__(datastore, **kwargs)
        table = SQL("{}.{}").format(Identifier(datastore.schema), Identifier(READ_TABLE))
        self.sql_create_statements.append(
            SQL(
                "CREATE TABLE IF NOT EXISTS {} (id uuid PRIMARY KEY, status text NOT NULL, sum bigint)"
            ).format(table)
        )
        self._insert = SQL("INSERT INTO {} (id, status) VALUES (%s, 'pending')").format(table)
        self._update = SQL("UPDATE {} SET status = %s, sum = %s WHERE id = %s").format(table)

    def requested(self, task: UUID, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(self._insert, (task,), prepare=True)

    def changed(self, task: UUID, status: str, total: int | None, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(self._update, (status, total, task), prepare=True)


class TasksProjection(Projection[ReadTable]):
    @singledispatchmethod
    def process_event(self, domain_event: object, tracking: Tracking) -> None:
        raise TypeError(f"{type(domain_event)} at {tracking.notification_id}")

    @process_event.register
    def _(self, domain_event: Task.Requested, tracking: Tracking) -> None:
        self.view.requested(domain_event.originator_id, tracking)

    @process_event.register
    def _(self, domain_event: Task.Started, tracking: Tracking) -> None:
        self.view.changed(domain_event.originator_id, "running", None, tracking)

    @process_event.register
    def _(self, domain_event: Task.Completed, tracking: Tracking) -> None:
        self.view.changed(domain_event.originator_id, "completed", domain_event.sum, tracking)


def environment(connections: int) -> dict[str, str]:
    """What the library reads, from an address."""
    parts = {name: str(value) for name, value in conninfo_to_dict(os.environ["DSN"]).items()}
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": parts["dbname"],
        "POSTGRES_HOST": parts["host"],
        "POSTGRES_PORT": parts["port"],
        "POSTGRES_USER": parts["user"],
        "POSTGRES_PASSWORD": parts["password"],
        "POSTGRES_POOL_SIZE": str(connections),
        "POSTGRES_MAX_OVERFLOW": "4",
        "POSTGRES_ENABLE_DB_FUNCTIONS": os.environ["DB_FUNCTIONS"],
    }
