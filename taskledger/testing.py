"""Regression tests from production: a task that was exported, its history, and its handler run again.

    incident = load_incident("tests/incidents/order-4711.ndjson")    # taskledger export --task ID FILE

    def test_the_order_that_failed() -> None:
        assert incident.state.status == "dead"
        assert incident.run(ship_order) == {"shipped": True}

What the service decides is tested by command_side.testing. Needs no database, and no pytest either.
"""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from events.archive import Archive
from events.codec import EventMapper
from events.errors import ArchiveRefused
from events.records import EventRecord
from events.task_state import TaskState, evolve
from taskledger.context import TaskContext
from taskledger.registry import kind_of


@dataclass(frozen=True, slots=True)
class Recorded:
    event: EventRecord
    at: datetime
    position: int


@dataclass(frozen=True)
class Incident:
    """What happened to one task, or the beginning of it."""

    history: Sequence[Recorded]

    @property
    def events(self) -> list[EventRecord]:
        return [recorded.event for recorded in self.history]

    @property
    def states(self) -> list[TaskState]:
        """The task after each of its events. Raises UndecodableEvent where one cannot follow."""
        states: list[TaskState] = []
        for recorded in self.history:
            before = states[-1] if states else None
            states.append(evolve(before, recorded.event, at=recorded.at, position=recorded.position))
        return states

    @property
    def state(self) -> TaskState:
        """After the last of its events."""
        return self.states[-1]

    @property
    def task_id(self) -> UUID:
        return self.history[0].event.originator_id

    @property
    def payload(self) -> Any:
        """As the client sent it: plain JSON."""
        return self.state.payload

    def before(self, version: int) -> "Incident":
        """As it was before the event with this version. Raises ValueError if there was nothing."""
        earlier = [r for r in self.history if r.event.originator_version < version]
        if not earlier:
            raise ValueError(f"nothing had happened before version {version}")
        return Incident(earlier)

    def run(self, handler: Callable[..., Any], *, attempt: int | None = None) -> Any:
        """The result, as plain JSON, that the handler (a function with `@task`) has for this payload now:
        both go through its types, and what it raises is raised. `attempt` is the one it is told; the last
        one that started, if not given. Raises ConfigurationError for what is no handler, and
        pydantic ValidationError for a payload that its type refuses."""
        kind = kind_of(handler)
        state = self.state
        payload = kind.validate_payload(state.payload)
        context = TaskContext(
            self.task_id,
            max(1, state.attempt) if attempt is None else attempt,
            kind=state.kind,
            queue=state.queue,
            tags=state.tags,
            created_at=state.created_at,
        )
        result = handler(payload, context) if kind.takes_context else handler(payload)
        value = asyncio.run(result) if inspect.iscoroutine(result) else result
        return kind.result_adapter.dump_python(value, mode="json")


def load_incident(path: str | Path) -> Incident:
    """From a file of `taskledger export --task`. Raises ArchiveRefused for another one, OSError for one
    that cannot be read, UnknownEvent and UndecodableEvent for what this release does not understand."""
    mapper = EventMapper()
    with Path(path).open("rb") as lines:
        archive = Archive.of(lines)
        if archive.header.scope != "task":
            raise ArchiveRefused("the file holds a whole log; export one task of it")
        history = [Recorded(mapper.decode(e), e.recorded_at, e.id) for e in archive.events()]
    return Incident(history)
