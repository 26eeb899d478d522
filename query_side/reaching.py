"""Reads that are worth nothing before the read tables have reached a position."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from events.deadline import after, remaining
from events.errors import ReadModelLagging
from events.position import PositionToken
from query_side.read_model import Snapshot
from query_side.watch import ReadWatch

BUDGET_SECONDS: Final = 5.0
"""How long a read waits for the projector."""

T = TypeVar("T")


class Reaching:
    def __init__(self, watch: ReadWatch, *, budget_seconds: float = BUDGET_SECONDS) -> None:
        self._watch = watch
        self._budget = budget_seconds
        self._tag: str | None = None
        """Of the log, as last read."""

    async def read(
        self, token: PositionToken, read: Callable[[], Awaitable[tuple[Snapshot, T]]], *, hurry: bool = True
    ) -> tuple[Snapshot, T]:
        """What `read` gives, once its checkpoint is not below the position. Waits as well for a projector
        that has not made its tables yet; without `hurry` that one may first gather what follows. Raises
        LogRewound for another log's position, and ReadModelLagging when it does not get there in time."""
        deadline = after(self._budget)
        if token.tag == self._tag and token.position > (seen := self._watch.seen):
            # Most likely not there yet: one read less.
            await self._watch.reached(token.position, seen=seen, deadline=deadline, hurry=hurry)
        while True:
            seen = 0
            try:
                snapshot, found = await read()
            except ReadModelLagging:
                if not self._may_wait(deadline):
                    raise
            else:
                self._tag = snapshot.tag
                if snapshot.checkpoint >= token.of_log(snapshot.tag):
                    return snapshot, found
                if not self._may_wait(deadline):
                    raise ReadModelLagging("the read table has not reached the position yet")
                seen = snapshot.checkpoint
            await self._watch.reached(token.position, seen=seen, deadline=deadline, hurry=hurry)

    def _may_wait(self, deadline: float) -> bool:
        return remaining(deadline) > 0 and not self._watch.closed
