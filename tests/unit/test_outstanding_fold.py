"""The dispatcher's fold, against full states folded by evolve() alone, for any history in any batches."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_side.commands import (
    CancelTask,
    CompleteTask,
    CreateTask,
    DiscardTask,
    FailTask,
    QueueDue,
    ReplaceEntry,
    RequeueTask,
    StartTask,
    TaskCommand,
)
from command_side.dispatcher.outstanding import (
    UNKNOWN,
    Changes,
    Row,
    fold,
    recall,
    tasks_before,
    tasks_to_recall,
)
from command_side.dispatcher.overlay import Overlay
from command_side.errors import AttemptSuperseded, WrongState
from command_side.task import Context, create, decide
from events.append import RecordedEvent
from events.codec import EventMapper
from events.ids import as_uuid, queue_id
from events.queue_events import QueuePaused
from events.records import EventRecord
from events.task_state import SETTLED, TaskState, evolve

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
MAPPER = EventMapper()

STEPS: tuple[Callable[[TaskState], TaskCommand], ...] = (
    lambda s: StartTask(holder=f"holder-{s.version}", worker="w"),
    lambda _: StartTask(holder=None, worker="w"),
    lambda s: CompleteTask(s.attempt, {"sum": 3}),
    lambda s: FailTask(s.attempt, cause="error"),
    lambda s: FailTask(s.attempt, cause="lost"),
    lambda s: FailTask(s.attempt, cause="handed_back"),
    lambda s: FailTask(s.attempt, cause="retry_later", retry_in_seconds=5),
    lambda s: FailTask(s.attempt, cause="discarded"),
    lambda _: QueueDue(),
    lambda s: ReplaceEntry(s.queued_position),
    lambda _: CancelTask(by="ops"),
    lambda _: RequeueTask(),
    lambda _: DiscardTask(),
)


class World:
    """A log in memory, its tasks in full, and the table as the dispatcher keeps it."""

    def __init__(self, cached: int = 100) -> None:
        self.log: list[RecordedEvent] = []
        self.tasks: dict[UUID, TaskState] = {}
        self.table: dict[UUID, Row] = {}
        self.checkpoint = 0
        self.overlay = Overlay(cached)
        self.stored: dict[UUID, Row] = {}
        """What was committed of the overlay; `table` has always been committed at once."""

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=len(self.log))

    def create(self, **options: Any) -> UUID:
        task = UUID(int=len(self.tasks) + 1)
        values: dict[str, Any] = {"kind": "sum", "payload": {"x": 1}, "max_attempts": 2, **options}
        command = CreateTask(**values)
        self._append(task, create(task, command, Context(self.now, "uid")), command.kind, command.queue)
        return task

    def do(self, task: UUID, command: TaskCommand, after: float = 3600.0) -> bool:
        """`after` seconds, so that everything scheduled is due; False if the task refuses."""
        state = self.tasks[task]
        try:
            events = decide(state, command, Context(self.now + timedelta(seconds=after), "uid"))
        except (WrongState, AttemptSuperseded):
            return False
        for event in events:
            self._append(task, event, state.kind, state.queue)
        return True

    def _append(self, task: UUID, event: EventRecord, kind: str, queue: str) -> None:
        recorded = self.record(event, kind, queue)
        self.tasks[task] = evolve(
            self.tasks.get(task), event, at=recorded.recorded_at, position=recorded.id
        )

    def record(self, event: EventRecord, kind: str = "", queue: str = "", **changes: Any) -> RecordedEvent:
        stored = MAPPER.encode(event)
        recorded = RecordedEvent(
            originator_id=stored.originator_id,
            originator_version=stored.originator_version,
            topic=stored.topic,
            state=stored.state,
            id=len(self.log) + 1,
            recorded_at=self.now,
            tenant="default",
            kind=kind,
            queue=queue,
        )
        self.log.append(replace(recorded, **changes))
        return recorded

    def take(self, count: int) -> Changes:
        """What the relay does with the next batch, in memory."""
        events = self.log[self.checkpoint : self.checkpoint + count]
        known = tasks_before(events)
        rows = {task: self.table[task] for task in known if task in self.table}
        recalled = {
            task: row
            for task in tasks_to_recall(events, known - rows.keys())
            if (row := recall(self.history(task), self.checkpoint, MAPPER.decode)) is not None
        }
        changes = fold(rows, events, MAPPER.decode, recalled)
        for row in changes.put:
            self.table[row.task_id] = row
        for task in changes.gone:
            del self.table[task]
        self._take_over_the_overlay(events, recalled, changes)
        self.checkpoint += len(events)
        return changes

    def _take_over_the_overlay(
        self, events: Sequence[RecordedEvent], recalled: dict[UUID, Row], expected: Changes
    ) -> None:
        """The same, with a table that lags behind."""
        known = tasks_before(events)
        unknown = self.overlay.unknown(known)
        self.overlay.learn({task: self.stored[task] for task in unknown if task in self.stored})
        changes = fold(self.overlay.rows(known), events, MAPPER.decode, recalled)
        assert changes == expected
        self.overlay.add(changes)

    def commit(self) -> Changes:
        """What the overlay had."""
        changes = self.overlay.changes()
        self.stored.update((row.task_id, row) for row in changes.put)
        for task in changes.gone:
            del self.stored[task]
        self.overlay.committed()
        assert self.overlay.changes() == Changes()
        return changes

    def take_all(self) -> Changes:
        return self.take(len(self.log) - self.checkpoint)

    def history(self, task: UUID) -> list[RecordedEvent]:
        return [event for event in self.log if as_uuid(event.originator_id) == task]

    def expected(self) -> dict[UUID, dict[str, Any]]:
        """The table as full states have it at the checkpoint, without the code under test."""
        states: dict[UUID, TaskState] = {}
        for event in self.log[: self.checkpoint]:
            task = as_uuid(event.originator_id)
            if event.topic.startswith("Task"):
                states[task] = evolve(
                    states.get(task), MAPPER.decode(event), at=event.recorded_at, position=event.id
                )
        return {task: _plain(state) for task, state in states.items() if state.status not in SETTLED}


def _plain(s: TaskState) -> dict[str, Any]:
    late = None
    if s.status == "running":
        assert s.started_at is not None
        late = s.started_at + timedelta(seconds=s.timeout_seconds)
    return {
        "version": s.version,
        "state": s.status,
        "where": (s.tenant, s.queue, s.kind, s.priority),
        "queued": (s.queued_position, s.queued_at),
        "due_at": s.due_at,
        "held": (s.holder, s.attempt, late, s.isolated, s.cancel_requested),
    }


def _plain_row(r: Row) -> dict[str, Any]:
    return {
        "version": r.version,
        "state": r.state,
        "where": (r.tenant, r.queue, r.kind, r.priority),
        "queued": (r.queued_position, r.queued_at),
        "due_at": r.due_at,
        "held": (r.holder, r.attempt, r.timeout_at, r.isolated, r.cancel_requested),
    }


def plain_table(rows: Sequence[Row]) -> dict[UUID, dict[str, Any]]:
    return {row.task_id: _plain_row(row) for row in rows}


@given(
    moves=st.lists(st.tuples(st.integers(0, 5), st.integers(0, len(STEPS) - 1)), max_size=80),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=80),
    scheduled=st.booleans(),
    commits=st.lists(st.booleans(), min_size=1, max_size=10),
    cached=st.integers(0, 3),
)
def test_the_table_equals_an_independent_fold_at_every_checkpoint(
    moves: list[tuple[int, int]], sizes: list[int], scheduled: bool, commits: list[bool], cached: int
) -> None:
    world = World(cached)
    run_at = START + timedelta(minutes=5) if scheduled else None
    tasks = [
        world.create(priority="high", queue="mail", timeout_seconds=12.345678),
        world.create(run_at=run_at, tenant="default", kind="sha256"),
    ]
    for which, step in moves:
        if which >= len(tasks):
            tasks.append(world.create(priority="low"))
        else:
            world.do(tasks[which], STEPS[step](world.tasks[tasks[which]]))
    while world.checkpoint < len(world.log):
        before = world.checkpoint
        changes = world.take(sizes[before % len(sizes)])
        assert plain_table(list(world.table.values())) == world.expected()
        assert not changes.poison
        if commits[before % len(commits)]:
            world.commit()
            assert world.stored == world.table
        queued = [r.queued_position for r in changes.queued_after(before)]
        assert queued == sorted(queued)
        assert all(before < position <= world.checkpoint for position in queued)


def test_a_task_begun_and_finished_within_a_batch_never_touches_the_table() -> None:
    world = World()
    task = world.create()
    world.do(task, StartTask(holder="h", worker="w"))
    world.do(task, CompleteTask(1, None))

    assert world.take_all() == Changes()


def test_a_task_begun_and_finished_between_two_commits_never_touches_the_table() -> None:
    world = World()
    world.create()
    world.take_all()
    world.commit()
    task = world.create()
    world.take_all()
    world.do(task, StartTask(holder="h", worker="w"))
    world.take_all()
    world.do(task, CompleteTask(1, None))
    assert world.take_all().gone == [task]
    assert world.commit() == Changes()


def test_the_overlay_keeps_the_latest_rows_and_no_more() -> None:
    world = World(cached=2)
    tasks = [world.create() for _ in range(4)]
    world.take_all()
    assert world.overlay.unknown(tasks) == []
    world.commit()
    assert world.overlay.unknown(tasks) == tasks[:2]


def test_a_requeued_task_comes_back_with_what_only_its_creation_tells() -> None:
    world = World()
    task = world.create(priority="high", queue="mail", timeout_seconds=7)
    world.do(task, CancelTask())
    assert world.take_all() == Changes()
    world.do(task, RequeueTask())
    changes = world.take_all()

    (row,) = changes.queued_after(2)
    assert (row.queue, row.priority, row.timeout_seconds, row.queued_position) == ("mail", "high", 7, 3)


def test_discarding_a_settled_task_needs_no_history() -> None:
    world = World()
    task = world.create()
    world.do(task, CancelTask())
    world.take_all()
    world.do(task, DiscardTask())

    assert tasks_to_recall(world.log[2:], {task}) == set()
    assert world.take_all() == Changes()


def test_other_aggregates_are_passed_over() -> None:
    world = World()
    world.record(
        QueuePaused(
            originator_id=queue_id("default", "mail"),
            originator_version=1,
            event_uid="u",
            tenant="default",
            queue="mail",
        )
    )
    world.record(
        create(UUID(int=9), CreateTask("sum", {}), Context(START, "u")),
        topic="WorkflowStarted",
        state=b"not JSON",
    )
    assert world.take_all() == Changes()


POISONS: dict[str, dict[str, Any]] = {
    "an unknown topic": {"topic": "TaskTeleported"},
    "no JSON": {"state": b"\xff"},
    "no object": {"state": b"[]"},
    "a newer class version": {"state": b'{"class_version":99}'},
    "a gap in the versions": {"originator_version": 7},
    "a holder that no column holds": {
        "state": b'{"event_uid":"u","attempt":1,"holder":"\\u0000","worker":"w"}'
    },
    "an attempt beyond any column": {
        "state": b'{"event_uid":"u","attempt":99999999999999999999,"holder":"h","worker":"w"}'
    },
}


@pytest.mark.parametrize("changes", POISONS.values(), ids=POISONS.keys())
def test_a_poison_event_leaves_its_task_as_it_was_and_the_others_alone(changes: dict[str, Any]) -> None:
    world = World()
    task, other = world.create(), world.create()
    world.take_all()
    row = world.table[task]
    started = decide(world.tasks[task], StartTask(holder="h", worker="w"), Context(START, "u"))[0]
    world.record(started, **changes)
    world.do(other, StartTask(holder="h", worker="w"))
    taken = world.take_all()

    assert [(p.position, p.task_id) for p in taken.poison] == [(3, task)]
    assert world.table[task] == row._replace(unreadable=True)
    assert world.table[other].state == "running"

    world.record(started)
    assert world.take_all() == Changes(), "later events of the task are not news"


def test_a_creation_that_cannot_be_read_leaves_a_mark() -> None:
    world = World()
    event = create(UUID(int=5), CreateTask("sum", {}), Context(START, "u"))
    world.record(event, "sum", "mail", state=b"{}")
    changes = world.take_all()

    (row,) = changes.put
    assert (row.state, row.queue, row.unreadable) == (UNKNOWN, "mail", True)
    assert changes.queued_after(0) == []


def test_a_time_without_a_zone_is_poison() -> None:
    world = World()
    task = world.create()
    world.do(task, StartTask(holder="h", worker="w"))
    world.take_all()
    failed = decide(world.tasks[task], FailTask(1, cause="error"), Context(START, "u"))[0]
    world.record(
        failed, state=b'{"event_uid":"u","attempt":1,"cause":"error","retry_at":"2026-01-01T00:00:00"}'
    )
    assert len(world.take_all().poison) == 1


def test_history_that_became_readable_is_recalled_in_full() -> None:
    world = World()
    task = world.create()
    world.do(task, StartTask(holder="h", worker="w"))
    row = recall(world.history(task), 2, MAPPER.decode)

    assert row is not None
    assert (row.state, row.unreadable) == ("running", False)
    assert recall(world.history(task), 0, MAPPER.decode) is None
