"""A projection that adds up: for whoever wants numbers that the read tables do not have. Pure.

It is one table, of a key and of whole numbers, filled with all of history. What it adds for an event is
one pure function; following, rebuilding, comparing and verifying it are the same for all of them. An
example in full is projector.usage.

Only whole numbers: their sum is the same in any order, so that two folds of one log agree to the digit.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any, Final, Literal
from uuid import UUID

from events.errors import ConfigurationError
from events.task_events import Priority, TaskCreated, TaskEvent
from projector.definition import Definition
from projector.rows import text

KeyType = Literal["text", "date", "int8"]
Key = tuple[Any, ...]
Amounts = tuple[int, ...]

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TAKEN: Final = frozenset({"tasks"})


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a task since its creation; of its payload nothing."""

    id: UUID
    tenant: str
    kind: str
    queue: str
    priority: Priority
    tags: tuple[str, ...]


def origin_of(event: TaskCreated) -> Origin:
    return Origin(
        event.originator_id, event.tenant, event.kind, event.queue, event.priority, tuple(event.tags)
    )


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that happened to a task."""

    position: int
    at: datetime
    """When it was recorded, UTC."""
    event: TaskEvent
    task: Origin


@dataclass(frozen=True, slots=True)
class Tally:
    """Raises ConfigurationError for names that cannot be those of a table and its columns."""

    name: str
    """Of the projection and of its table: GET /usage reads `usage`."""
    keys: Mapping[str, KeyType]
    """Column -> type. No null."""
    sums: tuple[str, ...]
    """Columns that are added up."""
    amounts: Callable[[Fact], Iterable[tuple[Key, Amounts]]]
    """Pure: to which keys the event adds what, in the order of `keys` and `sums`."""
    version: int = 1
    """Raise it when `amounts` gives something else for the same event: a rebuild is then asked for."""

    def __post_init__(self) -> None:
        names = (self.name, *self.keys, *self.sums)
        if len(set(names[1:])) < len(names) - 1 or self.name in _TAKEN or not (self.keys and self.sums):
            raise ConfigurationError(f"projection {self.name}: its names are not its own, or too few")
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigurationError(f"projection {self.name}: a name is no identifier")

    @property
    def definition(self) -> Definition:
        keys = [f"{name} {type_} not null" for name, type_ in self.keys.items()]
        sums = [f"{name} int8 not null" for name in self.sums]
        columns = ", ".join([*keys, *sums, f"primary key ({', '.join(self.keys)})"])
        tables = f"create schema {{schema}}; create table {{schema}}.{self.name} ({columns})"
        return Definition(self.name, f"{tables} with (fillfactor = 50)", self.version)

    def fold(self, facts: Iterable[Fact]) -> dict[Key, Amounts]:
        """What they add together. Keys to which they add nothing are left out."""
        added: defaultdict[Key, Counter[int]] = defaultdict(Counter)
        for fact in facts:
            for key, amounts in self.amounts(fact):
                added[tuple(map(_storable, key))].update(dict(enumerate(amounts)))
        places = range(len(self.sums))
        totals = {key: tuple(counter[place] for place in places) for key, counter in added.items()}
        return {key: amounts for key, amounts in totals.items() if any(amounts)}


def _storable(part: object) -> object:
    return text(part) if isinstance(part, str) else part


def load_tallies(names: Iterable[str]) -> list[Tally]:
    """Each `module:NAME`. Raises ConfigurationError for what is not there or is no Tally."""
    found: list[Tally] = []
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            tally = getattr(import_module(module), attribute, None)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"TASKLEDGER__PROJECTIONS: cannot import {module}: {type(error).__name__}"
            ) from error
        if not isinstance(tally, Tally):
            raise ConfigurationError(f"TASKLEDGER__PROJECTIONS: {name} is no Tally (module:NAME)")
        found.append(tally)
    if len({tally.name for tally in found}) < len(found):
        raise ConfigurationError("TASKLEDGER__PROJECTIONS: two projections have the same name")
    return found
