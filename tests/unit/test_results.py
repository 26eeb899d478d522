"""A small result is stored at a glance, any other after a close look: to the same effect."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_side.worker import results
from command_side.worker.results import InvalidResult, checked_result
from taskledger import TaskContext, strict_json, task
from taskledger.registry import Kind
from taskledger.strict_json import MAX_INTEGER


async def anything(payload: object, ctx: TaskContext) -> Any:
    return payload, ctx


async def numbers(payload: object, ctx: TaskContext) -> dict[str, float | None]:
    return {str(payload): float(ctx.attempt)}


KINDS: list[Kind] = [vars(task("any")(f))["__taskledger_kind__"] for f in (anything, numbers)]
texts = st.text(max_size=3) | st.sampled_from(
    [
        "\0",
        "\ud800",
        "ü",
        "\x7f",
        '"\\',
        "x" * results.SMALL_CHARACTERS,
        "x" * (results.SMALL_CHARACTERS + 1),
    ]
)
integers = st.integers() | st.sampled_from([MAX_INTEGER, -MAX_INTEGER, MAX_INTEGER + 1, -MAX_INTEGER - 1])
floats = st.floats() | st.sampled_from([math.nan, math.inf, -0.0])
scalars = st.none() | st.booleans() | integers | floats | texts | st.binary(max_size=2)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts | st.integers(0, 2), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


def answer(kind: Kind, value: object) -> str:
    """With the type of each part: True == 1 == 1.0."""
    try:
        return repr(checked_result(kind, value))
    except InvalidResult as refused:
        return f"refused: {refused}"


@settings(deadline=None, max_examples=300)
@given(
    st.tuples(st.just(KINDS[0]), values)
    | st.tuples(st.just(KINDS[1]), st.dictionaries(texts, st.none() | floats, max_size=3))
)
def test_a_glance_and_a_close_look_agree(returned: tuple[Kind, object]) -> None:
    kind, value = returned
    at_a_glance = answer(kind, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "SMALL_VALUES", 0)
        assert at_a_glance == answer(kind, value)


def test_a_small_result_is_only_glanced_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "parse", None)
    small = {"sum": 3, "of": [1, 2.5, True], "name": "x" * results.SMALL_CHARACTERS}
    assert checked_result(KINDS[0], small) == small
    for large in ({"n": list(range(results.SMALL_VALUES))}, "ü", [None]):
        with pytest.raises(TypeError):
            checked_result(KINDS[0], large)
