"""Alembic's entry point. The connection comes from events.migrate, which holds the migration lock."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    version_table_schema="taskledger",
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
