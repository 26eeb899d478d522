"""Parked events, and what a checkpoint knows its log by."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"

_SQL = Path(__file__).parent.parent / "sql" / "0002_parking.sql"


def upgrade() -> None:
    op.get_bind().exec_driver_sql(_SQL.read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    op.execute("drop table taskledger.parked_events")
    op.execute("alter table taskledger.checkpoints drop column event_position, drop column event_at")
