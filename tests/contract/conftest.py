"""The real log, without the command side over it."""

from collections.abc import AsyncIterator

import pytest

from events.postgres_log import PostgresLog
from taskledger.postgres import Pool, connect


@pytest.fixture
async def postgres_log(dsn: str, pool: Pool) -> AsyncIterator[PostgresLog]:
    log = PostgresLog(pool, lambda: connect(dsn, name="test-append"))
    yield log
    await log.close()
