"""How a flaw is written down."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.evidence import Evidence
from tests.chaos.good_history import Story

Make = Callable[[Story], Evidence | None]


@dataclass(frozen=True, slots=True)
class Flaw:
    name: str
    breaks: frozenset[str]
    make: Make
    """Changes the story; returns the evidence where that itself is to be flawed."""


class Flaws(list[Flaw]):
    def breaking(self, *invariants: str) -> Callable[[Make], Make]:
        """The decorated function makes a flaw that breaks exactly these; its name says which."""

        def register(make: Make) -> Make:
            self.append(Flaw(make.__name__.replace("_", "-"), frozenset(invariants), make))
            return make

        return register
