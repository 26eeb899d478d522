"""What a notification says, and that whatever else arrives is no notice."""

from uuid import UUID

import pytest
from eventsourcing.persistence import StoredEvent

from events import notice
from events.append import AppendCommand, StreamAppend
from events.notice import Notice, Queued

TASK = UUID("018f4c2e-0000-7000-8000-00000000000a")
OTHER = UUID("018f4c2e-0000-7000-8000-00000000000b")


def append(*topics: str, task: UUID = TASK, lane: str | None = "") -> AppendCommand:
    events = [StoredEvent(task, number, topic, b"{}") for number, topic in enumerate(topics, 1)]
    return AppendCommand([StreamAppend(task, events, "default", "a.kind", "a-queue", lane)])


def told(commands: list[AppendCommand], last: int) -> Notice | None:
    """As append_v2 puts it."""
    said = notice.words(commands)
    count = sum(command.event_count for command in commands)
    return notice.read(f"{last}" if said is None else f"{last} {count} {said}")


def test_a_created_task_is_told_whole() -> None:
    queued = Queued(41, "a-queue", "a.kind", "high", TASK)
    assert told([append("TaskCreated", lane="high")], 41) == Notice(41, 41, [queued], quiet=True)


def test_each_task_has_the_position_of_its_last_event() -> None:
    commands = [
        append("TaskFailed", "TaskQueued", lane="low"),
        append("TaskCreated", task=OTHER, lane="high"),
    ]
    found = told(commands, 43)
    assert found is not None
    assert (found.first, found.last, found.quiet) == (41, 43, False)
    assert [(q.queued_position, q.priority, q.task_id) for q in found.queued] == [
        (42, "low", TASK),
        (43, "high", OTHER),
    ]


@pytest.mark.parametrize(
    ("topic", "quiet"), [("TaskStarted", True), ("TaskCompleted", False), ("TaskCancelRequested", False)]
)
def test_what_queues_nothing_says_so(topic: str, quiet: bool) -> None:
    assert told([append(topic)], 7) == Notice(7, 7, [], quiet=quiet)


def test_one_append_that_is_not_known_makes_all_of_it_unknown() -> None:
    assert told([append("TaskCreated", lane="high"), append("TaskCreated", lane=None)], 2) is None


@pytest.mark.parametrize(
    "payload",
    ["", "7", "x 1 quiet", "7 x", "7 1 what", "7 1 1/q/k/high/x", "7 1 1/q/k/high", "-7 1 quiet", "7 -1"],
)
def test_anything_else_says_no_more_than_that_there_is_something(payload: str) -> None:
    assert notice.read(payload) is None


@pytest.mark.parametrize(("payload", "head"), [("7", 7), ("7 1 quiet", 7), ("", None), ("x", None)])
def test_every_payload_of_ours_begins_with_the_head(payload: str, head: int | None) -> None:
    assert notice.head(payload) == head
