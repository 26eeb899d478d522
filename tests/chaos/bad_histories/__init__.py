"""Flaws that the checker must find, each put into the good campaign by hand.

A checker that has never said no proves nothing. Every flaw is made as small as it can be, so that it breaks
the invariants named with it and no others.
"""

from tests.chaos.bad_histories import answers, observations, tasks
from tests.chaos.bad_histories.flaw import Flaw

__all__ = ["FLAWS", "Flaw"]

FLAWS: list[Flaw] = [*answers.FLAWS, *tasks.FLAWS, *observations.FLAWS]
