"""The table of tasks. Each statement is a transaction of its own, with no BEGIN and COMMIT around it."""

import os

import orjson
from sqlalchemy import BigInteger, Column, Identity, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

metadata = MetaData()
tasks = Table(
    "tasks",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("result", JSONB),
)


def make_engine() -> AsyncEngine:
    size = int(os.environ["POOL_SIZE"])
    dsn = os.environ["DSN"].replace("postgresql://", "postgresql+asyncpg://")
    return create_async_engine(
        dsn,
        pool_size=size,
        max_overflow=0,
        pool_reset_on_return=None,
        isolation_level="AUTOCOMMIT",
        json_serializer=lambda value: orjson.dumps(value).decode(),
        json_deserializer=orjson.loads,
    )
