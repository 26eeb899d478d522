"""The log, its append function, and the tables beside it."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None

_SQL = Path(__file__).parent.parent / "sql"
_FILES = (
    "0001_log.sql",
    "0001_append.sql",
    "0001_checkpoints.sql",
    "0001_outstanding.sql",
    "0001_projections.sql",
)


def upgrade() -> None:
    for name in _FILES:
        op.get_bind().exec_driver_sql((_SQL / name).read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    # alembic keeps its own version table in the schema, and updates it after this.
    op.execute("drop function taskledger.append_v1")
    op.execute("drop table taskledger.task_events, taskledger.idempotency_keys")
    op.execute("drop table taskledger.leases, taskledger.log_identity, taskledger.checkpoints")
    op.execute("drop table taskledger.outstanding, taskledger.outstanding_log")
    # Generations of read tables are made by the projector, each in a schema of its own.
    op.execute(
        "do $$ declare name text; begin for name in select nspname from pg_namespace"
        " where nspname ~ '^taskledger_read_g[0-9]+$' loop execute format('drop schema %I cascade', name);"
        " end loop; end $$"
    )
    op.execute("drop table taskledger.projection_generations")
