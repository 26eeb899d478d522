"""List cursors: a place in one list with its filters, signed so that nobody can make one up. Pure."""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from query_side.errors import MalformedCursor

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FORM: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,19})(?:\.([0-9]{1,19}))?\.([A-Za-z0-9_-]{22})")
_SIGNATURE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Place:
    """The last row shown; the next page begins after it."""

    created_at: datetime
    created_position: int
    as_of: int | None = None
    """The position that the list is of, if it is one of the past."""


class CursorSigner:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, place: Place, bound_to: Mapping[str, Any]) -> str:
        """`bound_to`: the list and its filters. The cursor is of use with the very same ones only."""
        microseconds = (place.created_at - _EPOCH) // _MICROSECOND
        text = f"{microseconds}.{place.created_position}"
        if place.as_of is not None:
            text += f".{place.as_of}"
        return f"{text}.{self._signature(text, bound_to)}"

    def read(self, cursor: str, bound_to: Mapping[str, Any]) -> Place:
        """Raises MalformedCursor for whatever sign() would not have written."""
        match = _FORM.fullmatch(cursor)
        if match is None:
            raise MalformedCursor
        text = cursor[: match.start(4) - 1]
        if not hmac.compare_digest(self._signature(text, bound_to), match[4]):
            raise MalformedCursor
        as_of = None if match[3] is None else int(match[3])
        return Place(_EPOCH + int(match[1]) * _MICROSECOND, int(match[2]), as_of)

    def _signature(self, text: str, bound_to: Mapping[str, Any]) -> str:
        bound = orjson.dumps(bound_to, option=orjson.OPT_SORT_KEYS)
        digest = hmac.digest(self._secret, text.encode() + b"\n" + bound, hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:_SIGNATURE_BYTES]).rstrip(b"=").decode()


class Signers:
    """`secret` signs cursors; without one it derives from the log's tag."""

    def __init__(self, secret: bytes | None) -> None:
        self._secret = secret

    def of(self, tag: str) -> CursorSigner:
        derived = hashlib.sha256(f"taskledger cursor of log {tag}".encode()).digest()
        return CursorSigner(self._secret or derived)
