"""Read your own writes: an answer at a position or beyond, or none."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from events.deadline import after, remaining
from events.errors import ReadModelLagging
from events.position import PositionToken
from query_side.read_model import Snapshot
from query_side.watch import ReadWatch

POSITION_BUDGET_SECONDS: Final = 5.0
"""How long a read waits for the projector to reach its `min_position`."""

T = TypeVar("T")
Read = Callable[[], Awaitable[tuple[Snapshot, T]]]


class Consistency:
    """Of all reads of the read tables. The answer's own snapshot decides, never what was heard: so it
    holds over any number of query processes, and over a switch of generations."""

    def __init__(self, watch: ReadWatch, *, budget_seconds: float = POSITION_BUDGET_SECONDS) -> None:
        self._watch = watch
        self._budget = budget_seconds

    async def at(
        self, token: PositionToken | None, read: Read[T], *, hurry: bool = True
    ) -> tuple[Snapshot, T]:
        """What `read` gives once its snapshot is not below the position; it is called again until then,
        and first of all only when the position may have been reached.

        Raises LogRewound for another log's position, ReadModelLagging when the projector does not get
        there in time. Waits as well for a projector that has not made its tables yet; without `hurry` that
        one may first gather what follows.
        """
        if token is None:
            return await read()
        deadline = after(self._budget)
        seen = None
        if self._watch.is_behind(token):
            await self._watch.reached(token.position, seen=seen, deadline=deadline, hurry=hurry)
        while True:
            try:
                snapshot, found = await read()
            except ReadModelLagging:
                if not self.may_wait(deadline):
                    raise
            else:
                if snapshot.checkpoint >= token.of_log(snapshot.tag):
                    return snapshot, found
                if not self.may_wait(deadline):
                    raise ReadModelLagging("the read table has not reached the position yet")
                seen = snapshot.checkpoint
            await self._watch.reached(token.position, seen=seen, deadline=deadline, hurry=hurry)

    def may_wait(self, deadline: float) -> bool:
        return remaining(deadline) > 0 and not self._watch.closed


LOOK_SECONDS: Final = 0.1


async def polled(token: PositionToken | None, read: Read[T], whose: str) -> tuple[Snapshot, T]:
    """As Consistency.at(), of what a follower keeps that notifies nobody: it is looked at now and then."""
    deadline = after(POSITION_BUDGET_SECONDS)
    while True:
        snapshot, found = await read()
        if token is None or snapshot.checkpoint >= token.of_log(snapshot.tag):
            return snapshot, found
        if remaining(deadline) == 0:
            raise ReadModelLagging(f"{whose} has not reached the position yet")
        await asyncio.sleep(random.uniform(0.5, 1) * LOOK_SECONDS)  # noqa: S311  jitter
