"""Given / when / then for a task: what the service decides on a history, without a database.

    incident = load_incident("tests/incidents/order-4711.ndjson")
    given(incident.before(9)).when(FailTask(attempt=2, cause="error")).then(
        happened(TaskFailed, attempt=2, counted=True), happened(TaskDeadLettered, attempts=2)
    )

Events that were recorded can be expected just as well: `.then(*incident.events[8:])`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from command_side.commands import TaskCommand
from command_side.task import Context, decide
from events.codec import data_of
from events.errors import CommandRejected
from events.records import EventRecord
from events.task_state import TaskState
from taskledger.testing import Incident

_DRAWN: Final = {"retry_at"}
"""Of a recorded event: when it was drawn at random, so that only whether there is one can be expected."""


@dataclass(frozen=True, slots=True)
class Expected:
    cls: type[EventRecord]
    data: dict[str, Any] = field(default_factory=dict[str, Any])


def happened(cls: type[EventRecord], /, **data: Any) -> Expected:
    """An event of this class with these fields; its others may be anything."""
    return Expected(cls, data)


@dataclass(frozen=True, slots=True)
class Given:
    state: TaskState
    now: datetime

    def when(self, command: TaskCommand, *, now: datetime | None = None) -> "Then":
        """The command is decided on, at the time of the last event if no other is given."""
        try:
            events = decide(self.state, command, Context(now=now or self.now, uid="test"))
        except CommandRejected as refusal:
            return Then((), refusal)
        return Then(events, None)


@dataclass(frozen=True, slots=True)
class Then:
    events: Sequence[EventRecord]
    refusal: CommandRejected | None

    def then(self, *expected: Expected | EventRecord) -> None:
        """Exactly these events follow, none if none is given. Raises AssertionError."""
        if self.refusal is not None:
            raise AssertionError(f"refused: {type(self.refusal).__name__}: {self.refusal}")
        wanted = [_expected(event) for event in expected]
        names = [type(event).__name__ for event in self.events]
        if names != [want.cls.__name__ for want in wanted]:
            raise AssertionError(f"{names} followed, not {[want.cls.__name__ for want in wanted]}")
        for event, want in zip(self.events, wanted, strict=True):
            for name, value in want.data.items():
                found = getattr(event, name)
                if found != value and not (value is _ANYTHING and found is not None):
                    raise AssertionError(f"{type(event).__name__}.{name} is {found!r}, not {value!r}")

    def then_refused(self, error: type[CommandRejected]) -> None:
        """Raises AssertionError unless the command was refused so."""
        if not isinstance(self.refusal, error):
            followed = [type(event).__name__ for event in self.events] if not self.refusal else self.refusal
            raise AssertionError(f"not refused with {error.__name__}: {followed!r}")  # noqa: TRY004


def given(incident: Incident) -> Given:
    """The history, folded as every reader folds it."""
    return Given(incident.state, incident.history[-1].at)


class _Anything:
    def __repr__(self) -> str:
        return "a time"


_ANYTHING: Final = _Anything()


def _expected(event: Expected | EventRecord) -> Expected:
    if isinstance(event, Expected):
        return event
    data = {name: getattr(event, name) for name in data_of(event)}
    for name in _DRAWN & data.keys():
        data[name] = None if data[name] is None else _ANYTHING
    return Expected(type(event), data)
