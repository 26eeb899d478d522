"""The fold: a batch of events becomes final rows and differences of counters, however it is cut."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

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
    RequeueTask,
    StartTask,
    TaskCommand,
)
from command_side.task import Context, create, decide
from events.errors import CommandRejected
from events.queue_events import QueuePaused, QueueResumed
from events.records import EventRecord
from events.task_events import (
    RetryPolicy,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskCreated,
    TaskDeadLettered,
    TaskDiscarded,
    TaskError,
    TaskFailed,
    TaskQueued,
    TaskRequeued,
    TaskStarted,
)
from events.task_state import TaskState, evolve
from projector.audit import audit
from projector.fold import (
    FOLD_VERSION,
    ActivityKey,
    Changes,
    CountKey,
    Entry,
    FoldStopped,
    TaskRow,
    fold,
    needed,
)
from projector.rows import LOADED, NAMES, row_of, text, values_of
from tests.golden.records import WHEN, envelope

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
COMMANDS: Sequence[TaskCommand] = (
    StartTask(holder="h", worker="w"),
    CompleteTask(1, {"sum": 3}),
    FailTask(attempt=1, cause="error", error=TaskError(type="E", message="m")),
    FailTask(attempt=1, cause="lost"),
    FailTask(attempt=2, cause="discarded"),
    QueueDue(),
    CancelTask(by="ops", reason="why"),
    RequeueTask(),
    DiscardTask(),
)


class Histories:
    """Tasks whose events interleave in one log."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.states: dict[UUID, TaskState] = {}

    def create(self, **options: Any) -> UUID:
        task_id = uuid4()
        values: dict[str, Any] = {"kind": "sum", "payload": {"x": 1}, **options}
        command = CreateTask(**values)
        self.add(create(task_id, command, self._context()))
        return task_id

    def try_(self, task_id: UUID, command: TaskCommand) -> None:
        try:
            events = decide(self.states[task_id], command, self._context())
        except CommandRejected:
            return
        for event in events:
            self.add(event)

    def add(self, event: EventRecord) -> None:
        position = len(self.entries) + 1
        at = NOW + timedelta(seconds=20 * position)
        self.entries.append(Entry(position, at, event))
        if not isinstance(event, QueuePaused | QueueResumed):
            before = self.states.get(event.originator_id)
            self.states[event.originator_id] = evolve(before, event, at=at, position=position)

    def _context(self) -> Context:
        return Context(now=NOW + timedelta(days=len(self.entries)), uid="uid")


class Tables:
    """What the view does with changes, in memory. Rows are read back as the view reads them."""

    def __init__(self) -> None:
        self.rows: dict[UUID, dict[str, Any]] = {}
        self.counts: Counter[CountKey] = Counter()
        self.activity: Counter[ActivityKey] = Counter()

    def apply(self, entries: Sequence[Entry]) -> Changes:
        current = {
            task_id: row_of([self.rows[task_id][name] for name in LOADED])
            for task_id in needed(entries)
            if task_id in self.rows
        }
        changes = fold(entries, current)
        for row in changes.inserted.values():
            assert row.state.id not in self.rows
            self.rows[row.state.id] = dict(zip(NAMES, values_of(row), strict=True))
        for row in changes.updated.values():
            fresh = dict(zip(NAMES, values_of(row), strict=True))
            fresh["payload"] = self.rows[row.state.id]["payload"]
            self.rows[row.state.id] = fresh
        self.counts.update(changes.counts)
        self.activity.update(changes.activity)
        return changes


histories = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, len(COMMANDS) - 1)), min_size=1, max_size=60
)


def _log(choices: Sequence[tuple[int, int]]) -> Histories:
    log = Histories()
    ids = [log.create(queue=f"q{n % 2}", max_attempts=2, tags=("a", f"t{n}")) for n in range(5)]
    for task, command in choices:
        log.try_(ids[task], COMMANDS[command])
    return log


@given(histories, st.integers(1, 9))
def test_a_log_cut_into_batches_gives_the_rows_of_the_whole(
    choices: list[tuple[int, int]], size: int
) -> None:
    log = _log(choices)
    whole, cut = Tables(), Tables()
    whole.apply(log.entries)
    for n in range(0, len(log.entries), size):
        cut.apply(log.entries[n : n + size])

    assert cut.rows == whole.rows
    assert {k: n for k, n in cut.counts.items() if n} == dict(whole.counts)
    assert cut.activity == whole.activity


@given(histories)
def test_rows_are_the_states_that_evolve_gives_and_counters_count_them(
    choices: list[tuple[int, int]],
) -> None:
    log = _log(choices)
    changes = Tables().apply(log.entries)

    assert {i: r.state for i, r in changes.inserted.items()} == log.states
    expected = Counter((s.tenant, s.queue, s.kind, s.status) for s in log.states.values())
    assert changes.counts == expected


def test_a_task_that_ends_within_the_batch_is_one_row() -> None:
    log = Histories()
    task = log.create()
    log.try_(task, StartTask(holder="h", worker="w"))
    log.try_(task, CompleteTask(1, {"sum": 3}))

    changes = fold(log.entries, {})

    assert needed(log.entries) == []
    assert list(changes.inserted) == [task]
    assert (changes.updated, changes.position) == ({}, 3)
    assert changes.inserted[task].created_position == 1
    assert changes.counts == {("default", "default", "sum", "completed"): 1}


def test_an_update_keeps_the_place_of_creation_and_moves_the_counters() -> None:
    log = Histories()
    task = log.create()
    first = fold(log.entries, {})
    log.try_(task, StartTask(holder="h", worker="w"))
    changes = fold(log.entries[1:], first.inserted)

    assert needed(log.entries[1:]) == [task]
    assert changes.updated[task].created_position == 1
    assert changes.counts == {
        ("default", "default", "sum", "queued"): -1,
        ("default", "default", "sum", "running"): 1,
    }


def test_the_last_word_on_a_queue_counts() -> None:
    log = Histories()
    qid = uuid4()
    for version, cls in enumerate((QueuePaused, QueueResumed, QueuePaused), start=1):
        log.add(
            cls(
                originator_id=qid,
                originator_version=version,
                event_uid="u",
                tenant="t",
                queue="mail",
                by="me",
            )
        )
    row = fold(log.entries, {}).queues["t", "mail"]
    assert (row.paused, row.version, row.position, row.changed_by) == (True, 3, 3, "me")


def test_what_this_release_does_not_know_moves_the_checkpoint_only() -> None:
    changes = fold([Entry(7, NOW, None)], {})
    assert (changes.position, changes.inserted, changes.counts) == (7, {}, {})


@pytest.mark.parametrize("known", [True, False])
def test_a_gap_in_a_history_stops_the_fold_at_its_position(known: bool) -> None:
    log = Histories()
    task = log.create()
    gap = TaskStarted(
        originator_id=task if known else uuid4(),
        originator_version=3,
        event_uid="u",
        attempt=1,
        holder="h",
        worker="w",
    )
    with pytest.raises(FoldStopped) as stopped:
        fold([*log.entries, Entry(2, NOW, gap)], {})
    assert stopped.value.position == 2


def test_text_that_postgresql_cannot_hold_is_stored_readable() -> None:
    log = Histories()
    task = log.create(payload={"text": "a\0b"})
    log.try_(task, StartTask(holder="h\0", worker="w\0"))
    log.add(
        TaskCompleted(
            originator_id=task, originator_version=3, event_uid="u", attempt=1, result={"nul": "\0"}
        )
    )
    row = dict(zip(NAMES, values_of(fold(log.entries, {}).inserted[task]), strict=True))

    assert row["worker"] == "w\N{REPLACEMENT CHARACTER}"
    assert row["result"] == b'{"nul":"\\u0000"}'
    assert text(None) is None


def test_a_row_read_back_goes_on_where_it_was() -> None:
    log = Histories()
    task = log.create(tags=("a", "b"), max_attempts=3)
    log.try_(task, StartTask(holder="h", worker="w"))
    log.try_(task, FailTask(attempt=1, cause="error", error=TaskError(type="E", message="m")))
    row = fold(log.entries, {}).inserted[task]
    stored = dict(zip(NAMES, values_of(row), strict=True))
    back: TaskRow = row_of([stored[name] for name in LOADED])

    assert back.created_position == 1
    assert back.state.payload is None
    assert back.state == replace(row.state, payload=None)


def test_a_history_that_begins_in_the_middle_is_named() -> None:
    started = TaskStarted(
        originator_id=uuid4(), originator_version=1, event_uid="u", attempt=1, holder="h", worker="w"
    )
    findings = list(audit([Entry(1, NOW, None), Entry(2, NOW, started)]))
    assert len(findings) == 1
    assert "begins with TaskStarted" in findings[0]


KNOWN_ROWS = (1, "254634162241c8f5")


def test_other_rows_of_the_same_events_are_another_fold() -> None:
    """Fails when the fold gives something else than before for a history with every event. Then raise
    FOLD_VERSION, so that generations folded before ask for a rebuild, and put the new digest here. Where
    only a column is new, the tables' text has changed the version already: the digest is enough."""
    entries = [
        Entry(position, WHEN + timedelta(seconds=position), record)
        for position, record in enumerate(_every_event(), start=1)
    ]
    found = [
        (changes.inserted, changes.counts, changes.activity, changes.queues)
        for changes in (fold(entries[:length], {}) for length in range(1, len(entries) + 1))
    ]
    shown = [
        (
            [values_of(row) for row in inserted.values()],
            sorted(counts.items()),
            sorted(activity.items()),
            [astuple(row) for row in queues.values()],
        )
        for inserted, counts, activity, queues in found
    ]
    digest = hashlib.sha256(repr((NAMES, shown)).encode()).hexdigest()[:16]
    assert (FOLD_VERSION, digest) == KNOWN_ROWS


def _every_event() -> list[EventRecord]:
    """In an order in which they can follow one another, and all fields set."""

    def of(cls: type[EventRecord], version: int, **fields: Any) -> EventRecord:
        return cls(**{**envelope(version), **fields})

    error = TaskError(type="E", message="m", traceback="t")
    started = {"holder": "h", "worker": "w"}
    events: list[EventRecord] = [
        of(
            TaskCreated,
            1,
            kind="sum",
            payload={"b": 1, "a": [None, 1.5, "ü"]},
            queue="mail",
            priority="high",
            run_at=WHEN,
            scheduled=True,
            max_attempts=3,
            timeout_seconds=7.5,
            retry=RetryPolicy(base_seconds=2.0),
            tags=("x", "y"),
            tenant="other",
        ),
        of(TaskQueued, 2, reason="due"),
        of(TaskStarted, 3, attempt=1, **started),
        of(TaskFailed, 4, attempt=1, cause="lost", error=error, counted=False, retry_at=WHEN),
        of(TaskQueued, 5, reason="retry"),
        of(TaskStarted, 6, attempt=2, **started),
        of(TaskCancelRequested, 7, by="ops", reason="why"),
        of(TaskCancelled, 8, by="ops", reason="why"),
        of(TaskRequeued, 9, by="ops", reason="again"),
        of(TaskStarted, 10, attempt=3, **started),
        of(TaskFailed, 11, attempt=3, cause="error", error=error),
        of(TaskDeadLettered, 12, reason="attempts_exhausted", attempts=3),
        of(TaskRequeued, 13),
        of(TaskStarted, 14, attempt=4, **started),
        of(TaskCompleted, 15, attempt=4, result={"r": [1]}, duration=0.5),
    ]
    other = [
        event.model_copy(update={"originator_id": UUID(int=7)})
        for event in (*events[:8], of(TaskDiscarded, 9, by="ops", reason="no"))
    ]
    queues = [
        of(QueuePaused, 1, tenant="default", queue="mail", by="ops", reason="why"),
        of(QueueResumed, 2, tenant="default", queue="mail"),
    ]
    return [*events, *other, *queues]
