"""The sample kinds, called as plain functions."""

import hashlib
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from examples import handlers
from taskledger import Discard, TaskContext
from taskledger.registry import load_registry

KINDS = load_registry(["examples.handlers"]).kinds
SAFE = 2**53 - 1


def context(attempt: int) -> TaskContext:
    return TaskContext(uuid4(), attempt)


def test_all_are_there_with_their_types() -> None:
    assert {name: kind.execution for name, kind in KINDS.items()} == {
        "sum": "async",
        "text_stats": "thread",
        "sha256": "process",
        "title_check": "async",
        "sleep": "async",
        "flaky": "async",
        "crash": "async",
    }
    for kind in KINDS.values():
        assert kind.payload_schema["type"] == "object"
        assert kind.payload_schema["additionalProperties"] is False


@pytest.mark.parametrize(("x", "y"), [(2, 3), (-SAFE, SAFE), (0, 0)])
async def test_sum(x: int, y: int) -> None:
    assert (await handlers.add(handlers.SumPayload(x=x, y=y))).sum == x + y


async def test_a_sum_that_not_every_reader_can_hold_is_refused() -> None:
    with pytest.raises(Discard):
        await handlers.add(handlers.SumPayload(x=SAFE, y=1))


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("sum", {"x": "1", "y": 2}),
        ("sum", {"x": True, "y": 2}),
        ("sum", {"x": 1}),
        ("sum", {"x": 1, "y": 2, "z": 3}),
        ("sum", {"x": SAFE + 1, "y": 0}),
        ("title_check", {"title": ""}),
        ("title_check", {"title": "x" * 256}),
        ("title_check", {"title": "x", "delay_seconds": 61}),
        ("sleep", {"seconds": -1}),
        ("flaky", {"failures": 101}),
        ("crash", {"x": 1}),
    ],
)
def test_bad_payloads(kind: str, payload: Any) -> None:
    with pytest.raises(ValidationError):
        KINDS[kind].validate_payload(payload)


def test_text_stats() -> None:
    stats = handlers.text_stats(handlers.TextPayload(text="The cat's\nthe dog. THE\n\nÜber-cat's"))
    assert (stats.words, stats.lines, stats.characters) == (6, 4, 34)
    assert [(w.word, w.count) for w in stats.most_common] == [
        ("the", 3),
        ("cat's", 1),
        ("dog", 1),
        ("über-cat's", 1),
    ]


def test_text_stats_of_nothing_and_of_many_words() -> None:
    assert handlers.text_stats(handlers.TextPayload(text="")).words == 0
    many = " ".join(f"w{n}" for n in range(50))
    assert len(handlers.text_stats(handlers.TextPayload(text=many)).most_common) == 10


def test_sha256() -> None:
    digest = handlers.sha256(handlers.TextPayload(text="ü")).hexdigest
    assert digest == hashlib.sha256("ü".encode()).hexdigest()


async def test_title_check() -> None:
    even = handlers.TitlePayload(title="even", delay_seconds=0)
    assert (await handlers.title_check(even)).outcome == "success"
    with pytest.raises(Discard, match="odd"):
        await handlers.title_check(handlers.TitlePayload(title="odd", delay_seconds=0))
    assert handlers.TitlePayload(title="x").delay_seconds == 3


async def test_sleep_reports_progress() -> None:
    said: list[float] = []
    ctx = TaskContext(uuid4(), 1, report=lambda fraction, _: said.append(fraction))
    slept = await handlers.sleep(handlers.SleepPayload(seconds=0.02), ctx)
    assert slept.slept_seconds == 0.02
    assert said


async def test_flaky_succeeds_after_its_failures() -> None:
    payload = handlers.FlakyPayload(failures=2)
    for attempt in (1, 2):
        with pytest.raises(RuntimeError):
            await handlers.flaky(payload, context(attempt))
    assert (await handlers.flaky(payload, context(3))).attempt == 3
