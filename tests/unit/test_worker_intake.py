"""What a worker makes of stream entries: reading order, backlog, verdicts, starts in doubt."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from command_side.commands import StartTask
from command_side.errors import WrongState
from command_side.service import Applied, CommandService
from command_side.worker.attempts import Attempts
from command_side.worker.leases import Silence
from command_side.worker.starter import Starter, judge
from command_side.worker.streams import Backlog, Entry, Lanes, Stream, entry_of, streams_of
from events.errors import StoreUnavailable, UnknownEvent
from events.task_state import TaskState
from taskledger.registry import load_registry

KINDS = load_registry(["examples.handlers"]).kinds
STREAM = streams_of(["default"], ["flaky"])[1]


def state_of(**changes: Any) -> TaskState:
    state = TaskState(
        id=uuid4(),
        version=1,
        position=5,
        status="queued",
        kind="flaky",
        payload={"failures": 0},
        queue="default",
        priority="normal",
        max_attempts=5,
        timeout_seconds=30.0,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        queued_position=5,
    )
    return replace(state, **changes)


def entry_for(state: TaskState, entry_id: str = "5-1") -> Entry:
    return Entry(STREAM, entry_id, state.id)


def test_lanes_go_by_priority_and_turn_within() -> None:
    lanes = Lanes(streams_of(["a"], ["x", "y"]))
    first = [[s.kind for s in lane] for lane in lanes.next(())]
    second = lanes.next(())
    assert first == [["y", "x"]] * 3
    assert [[s.kind for s in lane] for lane in second] == [["x", "y"]] * 3
    assert [lane[0].priority for lane in second] == ["high", "normal", "low"]


def test_every_tenth_read_begins_with_the_lowest_lane() -> None:
    lanes = Lanes(streams_of(["a"], ["x"]))
    begins = [lanes.next(())[0][0].priority for _ in range(20)]
    assert [n for n, lane in enumerate(begins, 1) if lane == "low"] == [10, 20]


def test_streams_of_paused_queues_are_left_out() -> None:
    lanes = Lanes(streams_of(["a", "b"], ["x"]))
    assert {s.queue for lane in lanes.next({"a"}) for s in lane} == {"b"}


@pytest.mark.parametrize("fields", [None, {}, {"task": ""}, {"task": "x"}, {"task": str(uuid4()).upper()}])
def test_entries_without_a_task(fields: dict[str, str] | None) -> None:
    assert entry_of(STREAM, "1-1", fields).task_id is None


def test_the_backlog_holds_each_entry_once() -> None:
    backlog = Backlog()
    one, two = (entry_for(state_of(), f"{n}-1") for n in (1, 2))
    backlog.add([one, two])
    backlog.add([one])
    assert backlog.take(5) == [one, two]
    backlog.add([one])  # still unsettled
    assert backlog.take(5) == []
    backlog.retry([one, two])
    assert backlog.take(1) == [one]
    backlog.settle([one])
    backlog.add([one])
    assert backlog.take(5) == [two, one]


def test_entries_of_a_paused_queue_come_back_when_it_is_resumed() -> None:
    backlog = Backlog()
    entry = entry_for(state_of())
    pair = ("default", "default")
    backlog.add([entry])
    backlog.take(1)
    backlog.set_aside(*pair, entry)
    backlog.resume({pair})
    assert (backlog.take(1), backlog.paused) == ([], [pair])
    backlog.resume(set())
    assert (backlog.take(1), backlog.paused) == ([entry], [])


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "start"),
        ({"status": "running", "holder": "me"}, "adopt"),
        ({"status": "running", "holder": "another"}, "settled"),
        ({"status": "scheduled"}, "settled"),
        ({"status": "retrying"}, "settled"),
        ({"status": "completed"}, "settled"),
        ({"queue": "other"}, "forged"),
        ({"kind": "sum"}, "forged"),
        ({"priority": "high"}, "forged"),
    ],
)
def test_verdicts(changes: dict[str, Any], verdict: str) -> None:
    state = state_of(**changes)
    assert judge(entry_for(state), state, "me") == verdict
    assert judge(entry_for(state), None, "me") == "forged"


class Script:
    """Stands in for the CommandService: a small log whose answers can be lost."""

    def __init__(self, *states: TaskState) -> None:
        self.states = {state.id: state for state in states}
        self.unreadable: set[UUID] = set()
        self.lose_answers = False
        self.stale: dict[UUID, TaskState] = {}
        """What the first look at a task still sees."""

    async def load(self, ids: Sequence[UUID]) -> dict[UUID, TaskState]:
        if self.unreadable.intersection(ids):
            raise UnknownEvent("TaskTeleported")
        return {id_: self.states[id_] for id_ in ids if id_ in self.states}

    async def load_with_paused(
        self, ids: Sequence[UUID], pairs: Sequence[tuple[str, str]]
    ) -> tuple[dict[UUID, TaskState], set[tuple[str, str]]]:
        states = await self.load(ids) | {id_: self.stale[id_] for id_ in ids if id_ in self.stale}
        return states, {pair for pair in pairs if pair[0] == "paused tenant"}

    async def execute_each(self, work: Sequence[tuple[TaskState, StartTask]]) -> list[Applied | WrongState]:
        answers: list[Applied | WrongState] = []
        for state, command in work:
            if self.states[state.id].status == "queued":
                running = replace(state, status="running", attempt=state.attempt + 1, holder=command.holder)
                self.states[state.id] = running
                answers.append(Applied(running, 9, changed=True))
            else:
                answers.append(WrongState("not queued"))
        if self.lose_answers:
            raise StoreUnavailable("lost")
        return answers


def starter_on(script: Script, attempts: Attempts | None = None) -> Starter:
    return Starter(
        cast("CommandService", script), KINDS, attempts or Attempts(), holder="me", worker="anna"
    )


async def test_a_start_whose_answer_was_lost_is_run_after_all() -> None:
    state = state_of()
    script = Script(state)
    starter = starter_on(script)
    script.lose_answers = True
    with pytest.raises(StoreUnavailable):
        await starter.start([entry_for(state)])
    script.lose_answers = False

    started = await starter.start([entry_for(state)])

    assert [attempt.number for attempt in started.attempts] == [1]
    assert (await starter.start([entry_for(state)])).attempts == []
    assert dict(starter.counts) == {"adopted": 1, "started": 1, "settled": 1}


async def test_a_lost_start_that_shows_only_at_the_second_try() -> None:
    """The first reload still saw the task queued; our own late append made the second try conflict."""
    state = state_of()

    script = Script(state)
    script.stale = {state.id: state}
    starter = starter_on(script)
    script.lose_answers = True
    with pytest.raises(StoreUnavailable):
        await starter.start([entry_for(state)])
    script.lose_answers = False
    assert len((await starter.start([entry_for(state)])).attempts) == 1


async def test_an_attempt_that_has_just_ended_is_not_run_again() -> None:
    """Its entry was read again, because the acknowledgement was lost."""
    state = state_of(status="running", holder="me", attempt=1)
    started = await starter_on(Script(state)).start([entry_for(state)])
    assert (started.attempts, len(started.settled)) == ([], 1)


async def test_somebody_faster() -> None:
    state = state_of()
    script = Script(replace(state, status="running", holder="another", attempt=1))

    script.stale = {state.id: state}
    started = await starter_on(script).start([entry_for(state)])
    assert (started.attempts, len(started.settled)) == ([], 1)


async def test_a_task_of_a_later_release_holds_up_nobody() -> None:
    readable, later = state_of(), state_of()
    script = Script(readable, later)
    script.unreadable = {later.id}
    started = await starter_on(script).start([entry_for(later, "1-1"), entry_for(readable, "2-1")])
    assert [attempt.state.id for attempt in started.attempts] == [readable.id]
    assert [entry.id for entry in started.settled] == ["2-1"]  # the other one stays pending


async def test_pauses_of_other_tenants_count() -> None:
    state = state_of(tenant="paused tenant")
    started = await starter_on(Script(state)).start([entry_for(state)])
    assert (started.attempts, started.settled) == ([], [])
    assert started.aside == [(("paused tenant", "default"), entry_for(state))]


async def test_a_task_cancelled_at_once_is_stopped_before_it_runs() -> None:
    state = state_of(cancel_requested=True)
    started = await starter_on(Script(state)).start([entry_for(state)])
    assert started.attempts[0].stopped.result() == "cancelled"


def test_a_silent_loop_is_borne_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("command_side.worker.leases.time.monotonic", lambda: now)
    silence = Silence(15.0)
    assert not silence.too_long(alive=True)
    assert not silence.too_long(alive=False)
    now += 9
    assert not silence.too_long(alive=False)
    now += 2
    assert silence.too_long(alive=False)
    assert not silence.too_long(alive=True)
    assert not silence.too_long(alive=False)


def test_keys_of_a_queue_share_a_hash_tag() -> None:
    streams = streams_of(["mail"], ["sum", "flaky"])
    assert {s.key.partition(":")[0] for s in streams} == {"{tl"}
    assert all(isinstance(s, Stream) and s.key.startswith("{tl:mail}:") for s in streams)
