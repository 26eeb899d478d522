"""The append function that notifies what became queued."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    _run((_SQL / "0003_notice.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    before = (_SQL / "0001_append.sql").read_text(encoding="utf-8")
    _run(before.replace("create function", "create or replace function"))
    op.execute("drop function taskledger.append_v2")


def _run(text: str) -> None:
    op.get_bind().exec_driver_sql(text.replace("%", "%%"))
