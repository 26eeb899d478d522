"""Installs PgQueuer's tables, durable ones, and the table of results."""

import asyncio
import os

import asyncpg
from peer_api import RESULTS
from pgqueuer import AsyncpgDriver, Queries


async def main() -> None:
    connection = await asyncpg.connect(os.environ["DSN"])
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    await queries.optimize_autovacuum()
    await connection.execute(RESULTS)
    await connection.close()


asyncio.run(main())
