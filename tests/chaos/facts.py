"""The evidence, sorted once so that each invariant is one pass: operations, intentions, folded tasks."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tests.chaos.evidence import Evidence, LoggedEvent
from tests.chaos.history import Entry, Kind
from tests.chaos.model import Shown, TaskHistory, fold

OUTSIDE: Final = "outside"
"""Marks that begin so belong to kinds whose workers claim over HTTP: no handler of ours runs them."""


class Violation(NamedTuple):
    invariant: str
    detail: str


@dataclass(slots=True)
class Operation:
    invoked: Entry
    answer: Entry | None = None

    @property
    def outcome(self) -> Kind:
        """`info` where no answer ever came."""
        return "info" if self.answer is None else self.answer.type

    @property
    def task(self) -> str | None:
        return self.invoked.task or (self.answer.task if self.answer else None)

    @property
    def value(self) -> Any:
        """What it was answered with."""
        return self.answer.value if self.answer else None

    @property
    def marks(self) -> list[str]:
        """Of the tasks it was to create."""
        if self.invoked.f == "submit":
            return [self.invoked.value["mark"]]
        return list(self.invoked.value["marks"]) if self.invoked.f == "batch" else []

    @property
    def created(self) -> list[str]:
        """The tasks it was told to have created, in the order of its marks."""
        if self.outcome != "ok" or self.answer is None:
            return []
        if self.invoked.f == "submit":
            return [self.answer.task or ""]
        return list(self.answer.value["tasks"]) if self.invoked.f == "batch" else []

    def __str__(self) -> str:
        return f"{self.invoked.f} (operation {self.invoked.op} of {self.invoked.p})"


@dataclass(slots=True)
class Intent:
    """A task that clients wanted, by its mark, with every operation that asked for it."""

    mark: str
    operations: list[Operation] = field(default_factory=list[Operation])

    @property
    def first_invoked(self) -> int:
        return self.operations[0].invoked.i

    @property
    def is_acknowledged(self) -> bool:
        return any(operation.outcome == "ok" for operation in self.operations)

    @property
    def is_refused(self) -> bool:
        """By every operation that asked for it: then nothing happened."""
        return all(operation.outcome == "fail" for operation in self.operations)

    @property
    def at_most(self) -> int:
        """How many tasks it may have become: one, unless it was asked for again without a key."""
        tried = [operation.invoked.key for operation in self.operations if operation.outcome != "fail"]
        return max(1, len({key for key in tried if key is not None}) + tried.count(None))


class Facts:
    """Raises nothing: what makes no sense is told in `torn` and left out."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.torn: list[str] = []
        self.operations = self._operations(evidence.history)
        self.log = sorted(evidence.log, key=lambda event: event.position)
        self.tasks: dict[str, TaskHistory] = fold(self.log)
        self.creations: dict[str, list[LoggedEvent]] = {}
        """By mark."""
        for event in self.log:
            if event.type == "TaskCreated" and event.task not in evidence.foreign_ids:
                self.creations.setdefault(event.mark or "", []).append(event)
        self.intents = self._intents()

    def _operations(self, history: Iterable[Entry]) -> list[Operation]:
        found: dict[int, Operation] = {}
        for entry in history:
            if entry.type == "invoke":
                found[entry.op] = Operation(entry)
            elif entry.op not in found or found[entry.op].answer is not None:
                self.torn.append(f"entry {entry.i} answers operation {entry.op}, which is not open")
            else:
                found[entry.op].answer = entry
        return list(found.values())  # in the order of their invocations

    def _intents(self) -> dict[str, Intent]:
        intents: dict[str, Intent] = {}
        for operation in self.operations:
            for mark in operation.marks:
                intents.setdefault(mark, Intent(mark)).operations.append(operation)
        return intents

    def answered(self, *names: str) -> Iterator[tuple[Operation, Entry]]:
        """Operations that were ok, each with its answer; of these names, or of all."""
        for operation in self.operations:
            answer = operation.answer
            if answer is not None and answer.type == "ok" and (not names or operation.invoked.f in names):
                yield operation, answer

    def mark_of(self, task: str) -> str | None:
        history = self.tasks.get(task)
        return None if history is None else history.events[0].mark

    def at_version(self, task: str | None, version: int) -> Shown | None:
        """The task as of that version; None if the log has no such version."""
        history = self.tasks.get(task or "")
        if history is None or not 0 < version <= len(history.versions):
            return None
        return history.versions[version - 1]

    def version_at(self, task: str | None, position: int) -> int:
        """The task's version at that position of the log; 0 before its creation."""
        history = self.tasks.get(task or "")
        if history is None:
            return 0
        return bisect_right(history.versions, position, key=lambda shown: shown.position)

    def is_broken(self, task: str | None) -> bool:
        """Whether the log's history of the task makes no sense: told once, by the model."""
        history = self.tasks.get(task or "")
        return history is not None and history.flaw is not None


def position_of(token: str | int | None) -> int:
    """The position in a token `<position>.<log tag>`; 0 for none."""
    if token is None:
        return 0
    return token if isinstance(token, int) else int(token.partition(".")[0])
