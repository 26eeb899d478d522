"""Applies Procrastinate's schema, and makes the table of results."""

import asyncio

import tasks
from peer_api import RESULTS


async def main() -> None:
    async with tasks.opened(1) as pool:
        await tasks.app.schema_manager.apply_schema_async()
        async with pool.connection() as connection:
            await connection.execute(RESULTS)


asyncio.run(main())
