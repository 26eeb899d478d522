"""The Task aggregate against the model: the same commands are taken and refused, with the same outcome."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from command_side.commands import (
    CreateTask,
    FailTask,
    QueueDue,
    ReplaceEntry,
    TaskCommand,
)
from command_side.task import Context, create, decide
from events.append import RecordedEvent
from events.errors import CommandRejected
from events.records import EventRecord
from events.task_events import TaskFailed
from events.task_state import TaskState, evolve
from tests.chaos.model import SETTLED, State, TaskHistory, shown
from tests.properties.steps import (
    MAPPER,
    START,
    any_command,
    creations,
    has_effect,
    logged,
    next_command,
    recorded_as,
    usual,
)


def counts(model: State, command: FailTask) -> bool:
    """Whether the failure is the task's own: a loss only if the task was alone then, as it is after a loss.
    Where others were lost with it even so, that is doubted for so long."""
    if command.cause != "lost":
        return command.cause in ("error", "timeout", "discarded")
    doubted = command.beside_others and model["attempt"] <= model["max_attempts"] + 1
    return model["cause"] == "lost" and not doubted


class AggregateMachine(RuleBasedStateMachine):
    """A few tasks, commanded in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.position = 0
        self.states: dict[UUID, TaskState] = {}
        self.models: dict[UUID, TaskHistory] = {}
        self.queued_at: dict[UUID, int] = {}
        self.log: dict[UUID, list[RecordedEvent]] = {}

    @initialize(wanted=st.lists(creations(), min_size=1, max_size=3))
    def create(self, wanted: list[CreateTask]) -> None:
        for n, command in enumerate(wanted):
            task = UUID(int=n + 1)
            self._append(task, create(task, command, self._context()), command.kind, command.queue)

    @rule(pick=st.integers(0, 2), hours=st.sampled_from([0, 1, 30]), data=st.data())
    def goes_on(self, pick: int, hours: int, data: st.DataObject) -> None:
        self.now += timedelta(hours=hours)
        task, state = self._pick(pick)
        self._command(task, state, data.draw(next_command(state.status, state.attempt)))

    @rule(pick=st.integers(0, 2), data=st.data())
    def is_commanded(self, pick: int, data: st.DataObject) -> None:
        task, state = self._pick(pick)
        self._command(task, state, data.draw(any_command(state.attempt, state.queued_position)))

    def _pick(self, pick: int) -> tuple[UUID, TaskState]:
        return list(self.states.items())[pick % len(self.states)]

    def _command(self, task: UUID, state: TaskState, command: TaskCommand) -> None:
        model = self.models[task].state
        assert model is not None
        expected = has_effect(model, command)
        if isinstance(command, QueueDue):
            expected = expected and state.due_at is not None and state.due_at <= self.now
        elif isinstance(command, ReplaceEntry):
            expected = expected and command.queued_position == self.queued_at[task]
        try:
            events = decide(state, command, self._context())
        except CommandRejected:
            events = []
        assert bool(events) == expected, f"{command} on a task that is {model['status']}"
        if isinstance(command, FailTask) and isinstance(failed := next(iter(events), None), TaskFailed):
            assert failed.counted == counts(model, command)
        for event in events:
            self._append(task, event, state.kind, state.queue)

    @invariant()
    def both_folds_agree(self) -> None:
        for task, state in self.states.items():
            history = self.models[task]
            assert history.flaw is None
            assert history.state is not None
            assert history.state["status"] != "failed", "a command left a failure without its consequence"
            seen = shown(history.state, "")
            assert (state.status, state.attempt, state.version, state.position) == (
                seen.status,
                seen.attempt,
                len(history.versions),
                seen.position,
            )
            assert state.failures == history.state["failures"]
            if state.status == "running":
                assert state.cancel_requested == seen.cancelling
            assert (state.holder is not None) == (state.status == "running")
            assert (state.due_at is not None) == (state.status in ("scheduled", "retrying"))
            assert (state.finished_at is not None) == (state.status in SETTLED)

    def teardown(self) -> None:
        for task, state in self.states.items():
            replayed: TaskState | None = None
            for event in self.log[task]:
                replayed = evolve(replayed, MAPPER.decode(event), at=event.recorded_at, position=event.id)
            assert replayed == state, "what is stored folds to the same state"

    def _append(self, task: UUID, event: EventRecord, kind: str, queue: str) -> None:
        self.position += 1
        self.now += timedelta(microseconds=1)
        self.log.setdefault(task, []).append(recorded_as(event, self.position, self.now, kind, queue))
        before = self.states.get(task)
        self.states[task] = evolve(before, event, at=self.now, position=self.position)
        history = self.models.setdefault(task, TaskHistory())
        history.add(logged(event, self.position))
        assert history.flaw is None, history.flaw
        if history.versions[-1].status == "queued":
            self.queued_at[task] = self.position

    def _context(self) -> Context:
        return Context(now=self.now, uid=f"uid-{self.position}")


AggregateMachine.TestCase.settings = usual(examples=100, steps=40)
TestAggregate: Any = AggregateMachine.TestCase
