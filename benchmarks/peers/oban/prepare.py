"""Installs oban's tables."""

import asyncio

import tasks
from oban.schema import install


async def main() -> None:
    async with tasks.opened(1) as pool:
        await install(pool)


asyncio.run(main())
