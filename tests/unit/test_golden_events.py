"""The stored form of every event, held against files that never change."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from eventsourcing.persistence import StoredEvent

from events.codec import RECORD_FAMILIES, EventMapper
from events.records import EventRecord
from events.task_events import TaskCompleted, TaskCreated, TaskQueued, TaskStarted
from tests.golden.records import RECORDS, envelope

GOLDEN = Path(__file__).parents[1] / "golden"
MAPPER = EventMapper()

CASES = [
    pytest.param(cls, version, name, id=f"{cls.TOPIC}.v{version}-{name}")
    for (cls, version), records in RECORDS.items()
    for name in records
]


def file_of(cls: type[EventRecord], version: int) -> Path:
    return GOLDEN / f"{cls.TOPIC}.v{version}.json"


def golden(cls: type[EventRecord], version: int, name: str) -> StoredEvent:
    entry: dict[str, Any] = json.loads(file_of(cls, version).read_text(encoding="utf-8"))[name]
    # Compact, in the order of the file, as the codec writes it.
    state = json.dumps(entry["state"], separators=(",", ":"), ensure_ascii=False).encode()
    return StoredEvent(UUID(entry["originator_id"]), entry["originator_version"], entry["topic"], state)


@pytest.mark.parametrize(("cls", "version", "name"), CASES)
def test_a_golden_event_is_read_as_it_was_meant(cls: type[EventRecord], version: int, name: str) -> None:
    assert MAPPER.decode(golden(cls, version, name)) == RECORDS[cls, version][name]


@pytest.mark.parametrize(("cls", "version", "name"), CASES)
def test_an_event_of_the_present_version_is_written_as_in_its_golden_file(
    cls: type[EventRecord], version: int, name: str
) -> None:
    if version == cls.class_version:
        assert MAPPER.to_stored_event(RECORDS[cls, version][name]) == golden(cls, version, name)


def _shipped() -> list[type[EventRecord]]:
    """Every event class of the product. Classes that tests define belong to no release."""
    families: list[type[EventRecord]] = list(RECORD_FAMILIES)
    found: list[type[EventRecord]] = []
    while families:
        cls = families.pop()
        families.extend(type.__subclasses__(cls))
        if "TOPIC" in cls.__dict__ and cls.__module__.startswith("events."):
            found.append(cls)
    return found


def test_every_version_of_every_event_has_a_golden_file() -> None:
    expected = {(cls, v) for cls in _shipped() for v in range(1, cls.class_version + 1)}
    assert set(RECORDS) == expected
    assert {path.name for path in GOLDEN.glob("*.json")} == {file_of(*key).name for key in expected}


def test_every_field_of_every_event_is_in_its_golden_file() -> None:
    for cls in _shipped():
        records = RECORDS[cls, cls.class_version].values()
        stored = {name for record in records for name in json.loads(MAPPER.to_stored_event(record).state)}
        assert stored == set(cls.model_fields) - {"originator_id", "originator_version"}, cls.TOPIC


PLAIN = [
    TaskCreated(**envelope(), kind="text_stats", payload={"text": "x" * 500}),
    # A container's host name, as the worker's name is by default. Each byte more counts: with a name
    # longer than 15 bytes a start exceeds the budget, which a test cannot help.
    TaskStarted(
        **envelope(2), attempt=1, holder="0199d1a0-1111-7000-8000-000000000003", worker="3f9a2c81d07e"
    ),
    TaskQueued(**envelope(2), reason="handed_back"),
    TaskCompleted(**envelope(3), attempt=1, result={"words": 100}, duration=0.123456789),
]


@pytest.mark.parametrize("record", PLAIN, ids=lambda r: type(r).__name__)
def test_what_is_stored_beyond_kind_and_payload_is_under_120_bytes(record: EventRecord) -> None:
    state = MAPPER.to_stored_event(record).state
    carried: dict[str, Any] = {
        name: value for name, value in json.loads(state).items() if name in {"kind", "payload", "result"}
    }
    own = len(json.dumps(carried, separators=(",", ":")).encode()) if carried else 0
    assert len(state) - own < 120
