"""A file gives back the very bytes that went in, and refuses to give anything else."""

import base64
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.append import RecordedEvent
from events.archive import Archive, Archiver, Header
from events.errors import ArchiveRefused
from events.leaf import leaf_of
from events.merkle import TreeHead
from tests.unit.test_merkle import naive

AT = datetime(2026, 11, 26, 8, 9, 10, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def dumped(value: object) -> bytes:
    """As the codec does it, and otherwise for what it would refuse."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value).encode()


STATES = st.binary(max_size=30) | JSON.map(dumped) | JSON.map(lambda value: json.dumps(value).encode())


def event(position: int, state: bytes = b'{"n":1}', **changes: object) -> RecordedEvent:
    values: dict[str, object] = {
        "id": position,
        "originator_id": UUID(int=position),
        "originator_version": 1,
        "topic": "TaskCreated",
        "state": state,
        "recorded_at": AT + timedelta(microseconds=position),
        "tenant": "default",
        "kind": "sum",
        "queue": "grüße",
    }
    return RecordedEvent(**(values | changes))  # type: ignore[arg-type]


def written(events: list[RecordedEvent], scope: str = "log", count: int | None = None) -> list[bytes]:
    head = events[-1].id if events else 0
    archiver = Archiver(
        Header(
            "log" if scope == "log" else "task",
            "k3v9x0aa",
            head,
            len(events) if count is None else count,
            AT,
        )
    )
    return [archiver.header(), *(archiver.event(e) for e in events), archiver.trailer()]


def read(lines: list[bytes]) -> list[RecordedEvent]:
    return list(Archive.of(lines).events())


@settings(deadline=None)
@given(st.lists(st.tuples(STATES, TEXT, TEXT), max_size=8))
def test_events_come_back_as_the_same_bytes(drawn: list[tuple[bytes, str, str]]) -> None:
    events = [event(n + 1, state, topic=topic, kind=kind) for n, (state, topic, kind) in enumerate(drawn)]
    lines = written(events)
    assert [leaf_of(e) for e in read(lines)] == [leaf_of(e) for e in events]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)


def test_a_state_is_shown_as_json_where_that_gives_the_same_bytes() -> None:
    states = [b'{"x":1}', b'{"x": 1}', b'{"x":1,"x":2}', b"\xff", b'{"x":1.0e2}']
    lines = written([event(n + 1, state) for n, state in enumerate(states)])
    shown = [orjson.loads(line) for line in lines[1:-1]]
    assert shown[0]["state"] == {"x": 1}
    assert ["state_base64" in line for line in shown] == [False, True, True, True, True]


def test_the_last_line_has_the_root_of_the_tree_over_the_log() -> None:
    events = [event(n) for n in range(1, 12)]
    tree = TreeHead()
    for e in events:
        tree.add(leaf_of(e))
    assert tree.root() == naive([leaf_of(e) for e in events])
    assert orjson.loads(written(events)[-1])["root"] == base64.b64encode(tree.root()).decode()


GOOD = written([event(n) for n in range(1, 5)])

DAMAGED: dict[str, list[bytes]] = {
    "nothing": [],
    "another file": [b'{"a":1}\n'],
    "no json": [b"PK\x03\x04"],
    "a list": [b"[]\n"],
    "a later version": [GOOD[0].replace(b'"version":1', b'"version":2'), *GOOD[1:]],
    "another scope": [GOOD[0].replace(b'"scope":"log"', b'"scope":"all"'), *GOOD[1:]],
    "no time": [GOOD[0].replace(b'"exported_at":"2026', b'"exported_at":"x'), *GOOD[1:]],
    "another log": [GOOD[0].replace(b"k3v9x0aa", b"aaaaaaaa"), *GOOD[1:]],
    "no last line": GOOD[:-1],
    "cut in the last line": [*GOOD[:-1], GOOD[-1][:-1]],
    "cut in an event": [*GOOD[:-2], GOOD[-2][:20]],
    "only the first line": GOOD[:1],
    "an event less": [*GOOD[:2], *GOOD[3:]],
    "an event twice": [*GOOD[:2], GOOD[1], *GOOD[2:]],
    "two changed places": [GOOD[0], GOOD[2], GOOD[1], *GOOD[3:]],
    "a changed byte": [*GOOD[:2], GOOD[2].replace(b'"n":1', b'"n":2'), *GOOD[3:]],
    "a changed spelling": [*GOOD[:2], GOOD[2].replace(b'{"position"', b'{ "position"'), *GOOD[3:]],
    "no state": [*GOOD[:2], GOOD[2].replace(b'"state"', b'"stat"'), *GOOD[3:]],
    "a text for a number": [*GOOD[:2], GOOD[2].replace(b'"version":1', b'"version":"1"'), *GOOD[3:]],
    "a line more": [*GOOD, b"{}\n"],
    "the last line twice": [*GOOD, GOOD[-1]],
    "another count": written([event(1), event(2)], count=3),
    "a gap": written([event(1), event(3)]),
}


@pytest.mark.parametrize("lines", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_file_that_is_not_as_it_was_written_is_refused(lines: list[bytes]) -> None:
    assert len(read(GOOD)) == 4
    with pytest.raises(ArchiveRefused):
        read(lines)


def test_one_task_may_have_any_positions() -> None:
    assert [e.id for e in read(written([event(7), event(9)], scope="task"))] == [7, 9]
