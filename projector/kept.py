"""What the projector keeps, rebuilds and compares: the read tables, or a tally beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from psycopg import Connection
from psycopg.rows import TupleRow

from events.codec import EventMapper
from projector.definition import Definition
from projector.follower import Follower
from projector.generations import Generation
from projector.tally import Tally
from projector.tally_follower import TallyFollower
from projector.view import TASKS


class Following(Protocol):
    """What is asked of a follower: see projector.follower.Follower."""

    generation: Generation
    checkpoint: int

    @property
    def at(self) -> datetime | None: ...

    @property
    def present(self) -> Sequence[str] | None: ...

    def step(self, *, upto: int | None = None) -> bool: ...

    def follow_within(self, upto: int) -> None: ...

    def announce(self) -> None: ...


Follow = Callable[[Connection[TupleRow], EventMapper, Generation], Following]


@dataclass(frozen=True, slots=True)
class Kept:
    definition: Definition
    tables: Mapping[str, Sequence[str]]
    """Table -> its primary key."""
    follow: Follow
    by_streams: bool = False
    """Whether a rebuild can fold it stream by stream, in several processes."""

    @property
    def rebuild_command(self) -> str:
        """What an operator is told to run."""
        return "taskledger rebuild" + (
            "" if self.by_streams else f" --projection {self.definition.projection}"
        )


READ_TABLES: Final = Kept(
    TASKS,
    {
        "tasks": ("id",),
        "counts": ("tenant", "queue", "kind", "status"),
        "activity": ("minute",),
        "queues": ("tenant", "queue"),
    },
    Follower,
    by_streams=True,
)


def of_tally(tally: Tally) -> Kept:
    def follow(connection: Connection[TupleRow], mapper: EventMapper, generation: Generation) -> Following:
        return TallyFollower(connection, mapper, tally, generation)

    return Kept(tally.definition, {tally.name: tuple(tally.keys)}, follow)
