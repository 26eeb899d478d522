"""Whatever is ambiguous, malformed or cannot be stored is refused, without a word of the input."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskledger import strict_json
from taskledger.strict_json import MAX_INTEGER, MalformedJson, UnstorableJson

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="ascii")), inner),
    max_leaves=30,
)


@given(JSON)
def test_what_json_writes_is_read_back(value: Any) -> None:
    text = json.dumps(value)
    if "\\u0000" in text:  # a key, which this strategy may draw
        with pytest.raises(UnstorableJson):
            strict_json.parse(text.encode())
    else:
        assert strict_json.parse(text.encode()) == value


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\u0 1eE.-+tfnNaI').map(str.encode))
def test_any_bytes_are_a_value_or_a_refusal(body: bytes) -> None:
    try:
        value = strict_json.parse(body)
    except (MalformedJson, UnstorableJson):
        return
    json.dumps(value, allow_nan=False).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{} {}",
        b"[1,]",
        b"{'a': 1}",
        b'"\x01"',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"NaN",
        b"-Infinity",
        b'{"a": Infinity}',
        b"1e999",
        b'{"a": [-1e999]}',
        b"01",
        b"+1",
        b"nul",
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "\\u0062": 2}}',
        b"[" * 33 + b"]" * 33,
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'[["]]","[["' + b",[" * 31 + b"]" * 33,
        b'["\\\\",' + b"[" * 32 + b"]" * 33,
        b"]" * 40 + b"[" * 40,
    ],
)
def test_malformed(body: bytes) -> None:
    with pytest.raises(MalformedJson) as refusal:
        strict_json.parse(body)
    assert refusal.value.code == "malformed_json"
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    ("body", "location"),
    [
        (b'"\\ud800"', ""),
        (b'{"a": ["x", "\\udc00\\ud800"]}', "/a/1"),
        (b'{"a/b": {"~": "\\u0000"}}', "/a~1b/~0"),
        (b'{"a": {"\\u0000": 1}}', "/a"),
        (b'{"\\ud800": 1}', ""),
        (b'{"n": 9007199254740992}', "/n"),
        (b'{"n": [0, -9007199254740992]}', "/n/1"),
        (b'{"n": 1' + b"0" * 30 + b"}", "/n"),
        (b'{"n": -1' + b"0" * 4_999 + b"}", "/n"),
    ],
)
def test_well_formed_but_unstorable(body: bytes, location: str) -> None:
    with pytest.raises(UnstorableJson) as refusal:
        strict_json.parse(body)
    assert refusal.value.status == 422
    assert [flaw.location for flaw in refusal.value.violations] == [location]


def test_what_only_looks_suspicious_is_read() -> None:
    deep = b"[" * 32 + b"]" * 32
    assert strict_json.parse(b'"\\\\u0000"') == "\\u0000"
    assert strict_json.parse(b'"\\ud83d\\ude00"') == "😀"
    assert strict_json.parse(b'{"s": "' + b"[{" * 50 + b'\\""}') == {"s": "[{" * 50 + '"'}
    assert strict_json.parse(b'["' + b"[" * 40 + b'","\\\\",' + deep[1:-1] + b"]")[2] != []
    assert strict_json.parse(b"[" + b"{}," * 100 + b"{}]") == [{}] * 101
    assert strict_json.parse(b"9007199254740991") == MAX_INTEGER
    assert strict_json.parse(b"-0") == 0
    strict_json.parse(deep)


def test_depth_is_counted_right_across_a_large_body() -> None:
    strings = b'"[[[[[[[[",' * 20_000
    strict_json.parse(b"[" + strings + b"[" * 31 + b"]" * 32)
    with pytest.raises(MalformedJson):
        strict_json.parse(b"[" + strings + b"[" * 32 + b"]" * 33)


def test_the_depth_allowed_can_be_raised() -> None:
    body = b"[" * 34 + b"]" * 34
    strict_json.parse(body, max_depth=34)
    with pytest.raises(MalformedJson):
        strict_json.parse(body, max_depth=33)


def test_refusals_name_at_most_a_hundred_places_and_no_input() -> None:
    body = json.dumps({"secret" * 30: ["secret\0"] * 500}).encode()
    with pytest.raises(UnstorableJson) as refusal:
        strict_json.parse(body)
    assert len(refusal.value.violations) == 100
    assert all("secret" not in flaw.message for flaw in refusal.value.violations)
    assert all(len(flaw.location) < 80 for flaw in refusal.value.violations)


def test_small_bodies_cost_microseconds() -> None:
    body = b'{"kind":"sum","payload":{"x":1,"y":2.5},"queue":"default","tags":["a","b"]}'
    best = min(_seconds(body) for _ in range(20))
    assert best < 50e-6  # about 5 µs on an idle machine; the rest is room for a busy one


def _seconds(body: bytes, times: int = 200) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        strict_json.parse(body)
    return (time.perf_counter() - begun) / times
