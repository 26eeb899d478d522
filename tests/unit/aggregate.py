"""Given / when / then for the Task aggregate: plain events, no database."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from command_side.commands import CreateTask, TaskCommand
from command_side.task import Context, create, decide
from events.records import EventRecord
from events.task_events import TaskEvent
from events.task_state import TaskState, evolve

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
TASK_ID = UUID("01a20a18-fe82-75a1-a7d6-b07f9dd2cad5")


def context(**changes: Any) -> Context:
    values: dict[str, Any] = {"now": NOW, "uid": "uid", **changes}
    return Context(**values)


class Story:
    """A task's history so far. Positions rise by ten, so that position and version differ."""

    def __init__(self, **options: Any) -> None:
        values: dict[str, Any] = {"kind": "sum", "payload": {"x": 1}, **options}
        command = CreateTask(**values)
        self.events: list[EventRecord] = []
        self.state: TaskState = self._append([create(TASK_ID, command, context())])

    def given(self, *commands: TaskCommand, at: datetime = NOW) -> "Story":
        for command in commands:
            events = decide(self.state, command, context(now=at))
            assert events, f"{command} has no effect on a task that is {self.state.status}"
            self._append(events)
        return self

    def when(self, command: TaskCommand, **changes: Any) -> list[TaskEvent]:
        """What follows, checked to be a legal continuation."""
        events = decide(self.state, command, context(**changes))
        versions = [event.originator_version for event in events]
        assert versions == list(range(self.state.version + 1, self.state.version + 1 + len(events)))
        return events

    def _append(self, events: Sequence[EventRecord]) -> TaskState:
        state: TaskState | None = self.state if self.events else None
        for event in events:
            self.events.append(event)
            state = evolve(state, event, at=NOW, position=10 * len(self.events))
        assert state is not None
        self.state = state
        return state


def names(events: Sequence[EventRecord]) -> list[str]:
    return [type(event).__name__ for event in events]


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)
