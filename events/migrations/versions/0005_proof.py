"""The tree over the log, and the way in for an exported one."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"

_SQL = Path(__file__).parent.parent / "sql"
_FILES = ("0005_proof.sql", "0005_import.sql")


def upgrade() -> None:
    for name in _FILES:
        op.get_bind().exec_driver_sql((_SQL / name).read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    op.execute("drop function taskledger.import_events_v1, taskledger.import_begin_v1")
    op.execute("drop schema taskledger_proof cascade")
    op.execute("delete from taskledger.checkpoints where name = 'sealed'")
