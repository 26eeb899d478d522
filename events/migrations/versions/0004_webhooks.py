"""Webhooks, and what is sent to them."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"

_SQL = Path(__file__).parent.parent / "sql" / "0004_webhooks.sql"


def upgrade() -> None:
    op.get_bind().exec_driver_sql(_SQL.read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    op.execute("drop table taskledger.webhook_deliveries, taskledger.webhooks")
    op.execute("delete from taskledger.checkpoints where name = 'webhooks'")
