"""What a handler returns, as the log can keep it: strict JSON, of its declared type, bounded."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from taskledger import strict_json
from taskledger.registry import Kind
from taskledger.strict_json import MAX_INTEGER

MAX_RESULT_BYTES: Final = 1024 * 1024
SMALL_VALUES: Final = 20
SMALL_CHARACTERS: Final = 1_000
"""A result of no more values and shorter strings is within every bound."""


class InvalidResult(Exception):  # noqa: N818  its name is the error type that clients see
    """The handler returned something that cannot be stored. Trying again would not help."""


def checked_result(kind: Kind, value: Any) -> Any:
    """The value as plain JSON. Raises InvalidResult for one that is not of the declared type, is
    larger than 1 MiB as JSON, nested deeper than 32, or holds NaN, NUL, a lone surrogate or an
    integer beyond ±(2⁵³−1)."""
    try:
        typed = kind.result_adapter.validate_python(value)
        plain = kind.result_adapter.dump_python(typed, mode="json")
        if (typed is None and plain is None) or _is_small(plain, [SMALL_VALUES]):
            return plain
        # pydantic writes null for a NaN, and a result must not change on its way.
        nan = _holds_none(plain) and _holds_nan(kind.result_adapter.dump_python(typed))
        encoded = json.dumps(plain, ensure_ascii=True, separators=(",", ":")).encode()
    except Exception as error:  # noqa: BLE001  serialising calls the types' own code
        raise InvalidResult(f"the result is not of its declared type: {error}") from None
    if nan:
        raise InvalidResult("the result holds NaN or Infinity, which are not JSON")
    try:
        parsed = strict_json.parse(encoded)
    except strict_json.UnstorableJson as flawed:
        flaw = flawed.violations[0]
        raise InvalidResult(f"the result{flaw.location}: {flaw.message}") from None
    except strict_json.MalformedJson as malformed:
        raise InvalidResult(str(malformed).replace("the body", "the result")) from None
    size = len(encoded) if len(encoded) <= MAX_RESULT_BYTES else len(_utf8(parsed))
    if size > MAX_RESULT_BYTES:
        raise InvalidResult(f"the result takes {size} bytes; {MAX_RESULT_BYTES} are allowed")
    return parsed


def _is_small(plain: object, left: list[int]) -> bool:
    """Whether it is seen at a glance that the value can be stored as it is. All others are looked at
    closely. `left` counts down how many more values a glance takes in, at any depth."""
    left[0] -= 1
    if left[0] < 0:
        return False
    cls = type(plain)
    if cls is str:
        text = cast("str", plain)
        return len(text) <= SMALL_CHARACTERS and text.isascii() and "\0" not in text
    if cls is int:
        return -MAX_INTEGER <= cast("int", plain) <= MAX_INTEGER
    if cls is float:
        return math.isfinite(cast("float", plain))
    if cls is dict:
        items = cast("dict[object, object]", plain).items()
        return all(
            type(key) is str and _is_small(key, left) and _is_small(item, left) for key, item in items
        )
    if cls is list:
        return all(_is_small(item, left) for item in cast("list[object]", plain))
    return cls is bool


def _holds_none(plain: object) -> bool:
    match plain:
        case dict():
            return any(_holds_none(item) for item in cast("dict[str, object]", plain).values())
        case list():
            return any(_holds_none(item) for item in cast("list[object]", plain))
        case _:
            return plain is None


def _holds_nan(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(_holds_nan(item) for item in cast("Mapping[object, object]", value).values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(_holds_nan(item) for item in cast("Iterable[object]", value))
    return False


def _utf8(value: Any) -> bytes:
    """Escapes make text longer than it is stored."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
