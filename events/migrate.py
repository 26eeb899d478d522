"""Brings the database to what this release needs, and tells whether it is there."""

from pathlib import Path
from typing import Final

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from events.errors import SchemaNotReady

_LOCK: Final = 7311461898371
"""Session advisory lock: eight machines may migrate at once, one does the work, the others find it done."""

_MIGRATIONS: Final = Path(__file__).parent / "migrations"

_DRAW_TAG: Final = """
update taskledger.log_identity i set tag = substr(md5(gen_random_uuid()::text), 1, 8)
from (select tag from taskledger.log_identity for update) before
returning before.tag, i.tag
"""
_VERSION: Final = "select version_num from taskledger.alembic_version"


def newest_revision() -> str:
    """By the names of the files, which begin with it: whoever only asks need not load Alembic, which takes
    longer than all else at a process's start."""
    return max(path.name.partition("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


def migrate(dsn: str, revision: str = "head") -> str:
    """Upgrades to `revision` and returns the one reached. Safe to run twice and from many machines.

    Each migration is one transaction: a crash leaves the last whole one. Raises
    psycopg.OperationalError when the server cannot be reached.
    """
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    with psycopg.connect(dsn, autocommit=True, application_name="taskledger-migrate") as lock:
        lock.execute("select pg_advisory_lock(%s)", (_LOCK,))
        lock.execute("create schema if not exists taskledger")
        engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: psycopg.connect(dsn, application_name="taskledger-migrate"),
            poolclass=NullPool,
        )
        with engine.connect() as connection:
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS))
            config.attributes["connection"] = connection
            if revision == "base":
                command.downgrade(config, revision)
            else:
                command.upgrade(config, revision)
            connection.commit()
        engine.dispose()
        return _stored_revision(lock) or ""


def draw_tag(dsn: str) -> tuple[str, str]:
    """Makes the log another one for everybody who remembers it: its tag before, and the one it has now.

    Raises SchemaNotReady, and psycopg.OperationalError when the server cannot be reached.
    """
    with psycopg.connect(dsn, application_name="taskledger-restored") as connection:
        check_schema(connection)
        row = connection.execute(_DRAW_TAG).fetchone()
    if row is None:
        raise SchemaNotReady("the log has no tag: run `taskledger migrate` on an empty database")
    return str(row[0]), str(row[1])


def check_schema(connection: Connection[TupleRow]) -> None:
    """Raises SchemaNotReady unless the database is at this release's revision, or a later one:
    migrations only ever expand while the release before is running."""
    stored = _stored_revision(connection)
    if stored is None:
        raise SchemaNotReady("the database has not been migrated: run `taskledger migrate`")
    if stored < newest_revision():
        raise SchemaNotReady(
            f"the database is at revision {stored}, this release needs {newest_revision()}:"
            " run `taskledger migrate`"
        )


def _stored_revision(connection: Connection[TupleRow]) -> str | None:
    try:
        row = connection.execute(_VERSION).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return None
    return None if row is None else str(row[0])
