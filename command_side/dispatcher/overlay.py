"""What the fold knows beyond table `outstanding`: changes that are not committed yet, and a cache. Pure.

The table is written a few times a second and not with every batch, so a task that begins and ends in
between never touches it. And since only the leader writes it, what was read or written a moment ago need
not be read again: most events are about tasks of which the last event was seen just before.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final
from uuid import UUID

from command_side.dispatcher.outstanding import Changes, Row

MAX_CHANGES: Final = 10_000
"""Tasks whose changes wait in memory at most, give or take a batch."""
MAX_CACHED: Final = 20_000
"""Rows that are kept as the table has them: the tasks that something happened to last."""


class Overlay:
    """Over the table as one leader left it at its checkpoint."""

    def __init__(self, cached: int = MAX_CACHED) -> None:
        self._limit = cached
        self._changed: dict[UUID, Row | None] = {}
        """By task, in no order; None: it is settled, and the table still holds it."""
        self._unstored: set[UUID] = set()
        """Those of the changed that the table holds nothing of."""
        self._cached: OrderedDict[UUID, Row] = OrderedDict()
        """As the table has them; what changed last is last."""

    @property
    def is_full(self) -> bool:
        return len(self._changed) >= MAX_CHANGES

    def unknown(self, tasks: Iterable[UUID]) -> list[UUID]:
        """Those of which only the table can tell."""
        return [task for task in tasks if task not in self._changed and task not in self._cached]

    def learn(self, rows: Mapping[UUID, Row]) -> None:
        """What the table holds at its checkpoint."""
        self._cached.update(rows)

    def rows(self, tasks: Iterable[UUID]) -> dict[UUID, Row]:
        """What the table would hold of them if all were committed, once it was asked for the unknown."""
        found: dict[UUID, Row] = {}
        for task in tasks:
            row = self._changed[task] if task in self._changed else self._cached.get(task)
            if row is not None:
                found[task] = row
        return found

    def add(self, changes: Changes) -> None:
        """What a batch does to rows()."""
        for row in changes.put:
            self._put(row.task_id, row)
        for task in changes.gone:
            if task in self._unstored:
                self._unstored.remove(task)
                del self._changed[task]
            else:
                self._put(task, None)
        self._forget_oldest()

    def _put(self, task: UUID, row: Row | None) -> None:
        if task not in self._changed and self._cached.pop(task, None) is None:
            self._unstored.add(task)
        self._changed[task] = row

    def changes(self) -> Changes:
        """All that the table lacks."""
        changes = Changes()
        for task, row in self._changed.items():
            if row is None:
                changes.gone.append(task)
            else:
                changes.put.append(row)
        return changes

    def committed(self) -> None:
        """The table has what changes() said."""
        self._cached.update((task, row) for task, row in self._changed.items() if row is not None)
        self._changed.clear()
        self._unstored.clear()
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        while len(self._cached) > self._limit:
            self._cached.popitem(last=False)
