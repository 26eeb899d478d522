"""Bodies and headers, read once: bounded while they stream in, parsed strictly, fitted to a model."""

import asyncio
import hashlib
import re
from typing import Any, Final, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from command_side.errors import InvalidCommand, MalformedKey, Violation
from events.append import IdempotencyKey
from events.ids import DEFAULT_TENANT
from taskledger import strict_json
from taskledger.http import MAX_ERRORS, message_of, pointer

Model = TypeVar("Model", bound=BaseModel)

LARGE_BYTES: Final = 256 * 1024
"""From here on a body is parsed in a thread: a few milliseconds are enough to hold up everybody."""

_JSON: Final = re.compile(rb'application/json[ \t]*(;[ \t]*charset=("utf-8"|utf-8)[ \t]*)?', re.IGNORECASE)
_KEY: Final = re.compile(rb"[!-~]{1,255}")
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_CLOSE: Final = {"Connection": "close"}


async def read(
    request: Request,
    model: type[Model],
    *,
    limit: int,
    max_depth: int = strict_json.MAX_DEPTH,
    optional: bool = False,
) -> tuple[Model, Any]:
    """The body as a model and as plain JSON; `optional`: no body at all stands for `{}`.

    Raises HTTPException (413, which closes the connection, and 415), MalformedJson,
    UnstorableJson, and InvalidCommand with a violation for each field that does not fit.
    """
    types = _headers(request, b"content-type")
    if not (len(types) == 1 and _JSON.fullmatch(types[0])) and (types or not optional):
        raise HTTPException(415)
    if _headers(request, b"content-encoding"):
        raise HTTPException(415)
    body = await _receive(request, limit)
    if optional and not body:
        return model(), {}
    if not types:
        raise HTTPException(415)
    if len(body) > LARGE_BYTES:
        value = await asyncio.to_thread(strict_json.parse, body, max_depth=max_depth)
    else:
        value = strict_json.parse(body, max_depth=max_depth)
    return fit(model, value), value


def fit(model: type[Model], value: Any) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidCommand("the body does not fit", violations_of(error)) from None


def violations_of(error: ValidationError, at: str = "") -> tuple[Violation, ...]:
    """The first 100, each below the place `at`."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_ERRORS]
    return tuple(Violation(at + pointer(("body", *e["loc"])), message_of(e)) for e in found)


def idempotency_key(request: Request) -> str | None:
    """Raises MalformedKey."""
    keys = _headers(request, b"idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise MalformedKey
    return keys[0].decode()


def keyed(key: str | None, operation: str, body: Any) -> IdempotencyKey | None:
    """With a fingerprint of the body's meaning: neither spaces nor the order of fields count."""
    if key is None:
        return None
    fingerprint = hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).digest()
    return IdempotencyKey(DEFAULT_TENANT, operation, key, fingerprint)


def traceparent(request: Request) -> str | None:
    """W3C trace context; one that is not valid is ignored, as the recommendation asks."""
    found = _headers(request, b"traceparent")
    if len(found) == 1 and _TRACEPARENT.fullmatch(found[0]):
        return found[0].decode()
    return None


def _headers(request: Request, name: bytes) -> list[bytes]:
    return [value for header, value in request.scope["headers"] if header == name]


async def _receive(request: Request, limit: int) -> bytes:
    declared = _headers(request, b"content-length")
    if declared and declared[0].isdigit() and int(declared[0]) > limit:
        raise HTTPException(413, headers=_CLOSE)
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise HTTPException(413, headers=_CLOSE)
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)
