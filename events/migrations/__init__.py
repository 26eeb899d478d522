"""Alembic migrations of the log: the only place that runs DDL for it."""
