"""Tallies add up what one pure function says, whatever the batches."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from events.errors import ConfigurationError
from events.ids import new_task_id
from events.task_events import TaskCompleted, TaskEvent, TaskFailed, TaskStarted
from projector.tally import Fact, Origin, Tally, load_tallies
from projector.usage import USAGE

DAY = datetime(2026, 11, 26, 23, 59, 59, tzinfo=UTC)


def fact(event: type[TaskEvent], at: datetime = DAY, tags: tuple[str, ...] = (), **fields: Any) -> Fact:
    task_id = new_task_id()
    made = event(originator_id=task_id, originator_version=2, event_uid="u", **fields)
    return Fact(7, at, made, Origin(task_id, "default", "sum", "default", "normal", tags))


def started(**options: Any) -> Fact:
    return fact(TaskStarted, attempt=1, holder="h", worker="w", **options)


def completed(duration: float | None, **options: Any) -> Fact:
    return fact(TaskCompleted, attempt=1, duration=duration, **options)


def test_usage_counts_for_every_tag_by_the_day_of_utc() -> None:
    later = DAY + timedelta(seconds=1)
    facts = [
        started(tags=("a", "b")),
        completed(1.5, tags=("a", "b")),
        completed(None, tags=("a",), at=later),
        fact(TaskFailed, attempt=1, cause="error", tags=("a",)),
        started(),
    ]
    today, tomorrow = date(2026, 11, 26), date(2026, 11, 27)
    assert USAGE.fold(facts) == {
        ("default", today, "a"): (1, 1, 1_500_000),
        ("default", today, "b"): (1, 1, 1_500_000),
        ("default", tomorrow, "a"): (1, 0, 0),
        ("default", today, ""): (0, 1, 0),
    }


def test_batches_add_up_to_the_whole() -> None:
    facts = [completed(n / 7, tags=("a",) * (n % 2)) for n in range(50)]
    whole = USAGE.fold(facts)
    for size in (1, 7, 50):
        added = Counter[tuple[Any, int]]()
        for first in range(0, len(facts), size):
            for key, amounts in USAGE.fold(facts[first : first + size]).items():
                added.update({(key, place): amount for place, amount in enumerate(amounts)})
        assert {key: tuple(added[key, place] for place in range(3)) for key in whole} == whole


def test_keys_that_the_database_would_take_for_one_are_one() -> None:
    tally = Tally("t", {"k": "text"}, ("n",), lambda fact: [((fact.task.tags[0],), (1,))])
    assert tally.fold([started(tags=("a\0",)), started(tags=("a\N{REPLACEMENT CHARACTER}",))]) == {
        ("a\N{REPLACEMENT CHARACTER}",): (2,)
    }


def test_the_version_follows_from_columns_and_fold() -> None:
    def made(**other: Any) -> str:
        fields: dict[str, Any] = {"name": "t", "keys": {"k": "text"}, "sums": ("n",), "amounts": list}
        return Tally(**{**fields, **other}).definition.version

    versions = [made(), made(version=2), made(sums=("n", "m")), made(keys={"k": "date"}), made(name="u")]
    assert len(set(versions)) == len(versions)
    assert made(amounts=tuple) == made()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "tasks"},
        {"name": "Usage"},
        {"name": "a; drop"},
        {"keys": {}},
        {"sums": ()},
        {"sums": ("k",)},
        {"sums": ("n n",)},
    ],
)
def test_names_that_no_table_can_have_are_refused(fields: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"name": "t", "keys": {"k": "text"}, "sums": ("n",), "amounts": list}
    with pytest.raises(ConfigurationError):
        Tally(**{**usual, **fields})


def test_projections_are_loaded_by_name() -> None:
    assert load_tallies(["projector.usage:USAGE"]) == [USAGE]


@pytest.mark.parametrize(
    "names",
    [
        ["projector.nowhere:USAGE"],
        ["projector.usage:NOTHING"],
        ["projector.usage:Fact"],
        ["projector.usage"],
        ["projector.usage:USAGE", "projector.usage:USAGE"],
    ],
)
def test_what_is_no_tally_is_refused_by_the_settings_name(names: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^TASKLEDGER__PROJECTIONS: "):
        load_tallies(names)
