"""Which generation a rebuild works on: one that a killed rebuild has left, or else a new one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

from events.errors import LogRewound
from events.tracking import check_log
from projector import generations, plan
from projector.definition import Definition
from projector.generations import Generation
from projector.leadership import Leadership
from projector.plan import Plan

PATIENCE_SECONDS: Final = 2.0
"""The server may need a moment to see that the process is dead which led the generation."""

Say = Callable[[str], None]
"""Told in one line what somebody at a terminal wants to know."""


@dataclass(frozen=True, slots=True)
class Begun:
    generation: Generation
    plan: Plan | None
    """What is left to be folded by ranges of streams. None: not planned yet, or all of that is done (then
    its checkpoint is above 0)."""


def begin(
    connection: Connection[TupleRow], leadership: Leadership, definition: Definition, say: Say
) -> Begun:
    """A generation that no projector and no other rebuild touches. Drops those of dead rebuilds that
    cannot be resumed, and says why."""
    with connection.transaction():
        generations.lock_generations(connection)
        resumed: Begun | None = None
        for left in reversed(generations.generations(connection, definition)):
            if left.state != "building" or not leadership.leads(left.number, patience=PATIENCE_SECONDS):
                continue
            begun, obstacle = _resumable(connection, left)
            if resumed is None and obstacle is None:
                resumed = begun
                continue
            if resumed is None:
                say(f"generation {left.number} cannot be resumed: {obstacle}; starting over")
            generations.drop(connection, left)
            leadership.resign(left.number)
        if resumed is not None:
            return resumed
        generation = generations.create(connection, "building", definition)
        leadership.leads(generation.number)
        return Begun(generation, None)


def _resumable(connection: Connection[TupleRow], left: Generation) -> tuple[Begun, str | None]:
    """And why it is not."""
    if not left.is_ours:
        return Begun(left, None), "another release has begun it, with another definition of the read tables"
    if left.checkpoint:
        try:
            check_log(connection, left.name)
        except LogRewound as error:
            return Begun(left, None), f"the log was restored: {error}"
        return Begun(left, None), None
    if not plan.stored(connection, left.number):
        return Begun(left, None), "nothing of it was finished"
    found, obstacle = plan.load(connection, left.number)
    return Begun(left, found), obstacle
