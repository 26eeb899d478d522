"""Creates the table."""

import asyncio

from database import make_engine, metadata


async def main() -> None:
    engine = make_engine()
    async with engine.connect() as connection:
        await connection.run_sync(metadata.create_all)
    await engine.dispose()


asyncio.run(main())
