"""JSON from strangers: one value, unambiguous, bounded and storable, or a refusal that names the place.

What is not JSON, or means different things to different readers, is malformed (400): wrong syntax,
NaN, numbers that overflow, a key twice, bytes that are not UTF-8. What is JSON but cannot be stored
everywhere is refused too (422): lone surrogates, NUL in strings, integers beyond ±(2⁵³−1).
No message repeats any input.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

import orjson

from events.errors import CommandRejected

MAX_DEPTH: Final = 32
MAX_INTEGER: Final = 2**53 - 1
MAX_VIOLATIONS: Final = 100

_MAX_DIGITS: Final = 18
_MAX_NAME: Final = 64
_PIECE_BYTES: Final = 64 * 1024
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True, slots=True)
class Flaw:
    """Where (a JSON Pointer), and what."""

    location: str
    message: str


class MalformedJson(CommandRejected):
    """Not JSON, or not JSON that everybody reads alike."""

    code = "malformed_json"
    status = 400


class UnstorableJson(CommandRejected):
    """Well-formed, but holding something that not every part of the service can keep."""

    code = "invalid_request"
    status = 422

    def __init__(self, violations: tuple[Flaw, ...]) -> None:
        super().__init__("the body holds values that cannot be stored")
        self.violations = violations


def parse(body: bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """The value; objects as dicts in their own order. Raises MalformedJson or UnstorableJson.

    Depth is counted before anything is parsed: no body can exhaust the parser's stack.
    """
    if not body:
        raise MalformedJson("the body is empty")
    if body.count(b"[") + body.count(b"{") > max_depth:
        _check_depth(body, max_depth)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise MalformedJson("the body is not UTF-8") from None
    try:
        value = _decode(text)
    except json.JSONDecodeError as error:
        raise MalformedJson(
            f"the body is not JSON: see line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError:  # int() refuses thousands of digits
        raise UnstorableJson(_flaws(_decode_bounded(text))) from None
    if "\\u0000" in text:
        _refuse_flawed(value)
    try:
        orjson.dumps(value, option=orjson.OPT_STRICT_INTEGER)
    except TypeError:
        _refuse_flawed(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MalformedJson("an object has the same key twice")
    return value


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise MalformedJson("a number is too large to be one")
    return number


def _no_constant(_: str) -> NoReturn:
    raise MalformedJson("NaN and Infinity are not JSON")


def _bounded(digits: str) -> int:
    """Stands in for an integer of any length: still too large, but cheap to make."""
    return int(digits[:_MAX_DIGITS])


_decode: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant
).decode
_decode_bounded: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant, parse_int=_bounded
).decode


def _check_depth(body: bytes, max_depth: int) -> None:
    """Takes strings away, then peels off one level of brackets after the other. Brackets that do not
    match are left over as well; the parser would refuse them in any case."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    left = _outside_strings(body).translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(max_depth):
        if b"[" * (max_depth + 1) in left:  # spares a hopeless body the remaining passes
            break
        left = left.replace(b"[]", b"")
        if not left:
            return
    raise MalformedJson(f"the body is nested deeper than {max_depth}, or its brackets do not match")


def _outside_strings(body: bytes) -> bytes:
    """What is left without strings, in pieces: the list of parts stays small, however many quotes."""
    kept: list[bytes] = []
    inside = 0
    for start in range(0, len(body), _PIECE_BYTES):
        parts = body[start : start + _PIECE_BYTES].split(b'"')
        kept.extend(parts[inside::2])
        inside = (inside + len(parts) - 1) % 2
        if len(kept) > _PIECE_BYTES:
            kept = [b"".join(kept)]
    return b"".join(kept)


def _refuse_flawed(value: Any) -> None:
    flaws = _flaws(value)
    if flaws:
        raise UnstorableJson(flaws)


def _flaws(value: Any) -> tuple[Flaw, ...]:
    found: list[Flaw] = []
    for flaw in _walk(value, ""):
        found.append(flaw)
        if len(found) == MAX_VIOLATIONS:
            break
    return tuple(found)


def _walk(value: Any, at: str) -> Iterator[Flaw]:
    if isinstance(value, str):
        problem = _string_problem(value)
        if problem:
            yield Flaw(at, problem)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        yield Flaw(at, "integers must lie within ±(2⁵³−1)")
    elif isinstance(value, list):
        for index, item in enumerate(cast("Sequence[Any]", value)):
            yield from _walk(item, f"{at}/{index}")
    elif isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            problem = _string_problem(key)
            if problem:
                yield Flaw(at, f"a key of this object: {problem}")
            else:
                yield from _walk(item, f"{at}/{_escaped(key)}")


def _string_problem(text: str) -> str | None:
    if "\0" in text:
        return "strings must not hold the character U+0000"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "strings must not hold a lone surrogate"
    return None


def _escaped(key: str) -> str:
    """A reference token of RFC 6901. Names a client made up are cut."""
    return key[:_MAX_NAME].replace("~", "~0").replace("/", "~1")
