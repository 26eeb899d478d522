"""What the relay was told of the log since it last read, and how it waits for more."""

import asyncio
from typing import Final

from events import notice
from events.notice import Notice

MOST: Final = 100
"""Notices kept. Past that a read is cheaper."""


class Told:
    """Filled by the listener, emptied by the relay."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._notices: list[Notice] = []
        self._whole = True

    def heard(self, payload: str | None) -> None:
        said = None if payload is None else notice.read(payload)
        if said is None or len(self._notices) >= MOST:
            self.look()
        else:
            self._notices.append(said)
            self._news.set()

    def look(self) -> None:
        """There may be more than was told: it has to be read."""
        self._whole = False
        self._notices.clear()
        self._news.set()

    async def wait(self, seconds: float) -> bool:
        """Whether there is news."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def take(self) -> list[Notice] | None:
        """All that was told since the last call, in order; None where that was not everything."""
        notices = self._notices if self._whole else None
        self._notices = []
        self._whole = True
        self._news.clear()
        return notices
