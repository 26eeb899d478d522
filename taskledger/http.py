"""What both APIs share: problem documents, request ids, refusal of what cannot be stored, health, serving.

app = FastAPI(docs_url=None, redoc_url=None, lifespan=...)
install(app)                  # before the first route
add_health(app, missing)      # these three: taskledger.operator_routes
add_metrics(app)
add_docs(app)
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any, Final, Protocol, runtime_checkable
from urllib.parse import unquote_to_bytes

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from events.errors import TaskledgerError
from events.ids import new_uid
from taskledger.admission import AdmissionMiddleware, Room
from taskledger.docs_page import tidy
from taskledger.metrics import REFUSALS
from taskledger.serving import is_stopping, on_stopping, serve
from taskledger.settings import HttpSettings
from taskledger.telemetry import get_logger

__all__ = [
    "MAX_ERRORS",
    "NO_TELEMETRY",
    "PROBLEMS",
    "Edge",
    "EdgeMiddleware",
    "Problem",
    "ProblemItem",
    "install",
    "is_stopping",
    "json_response",
    "message_of",
    "on_stopping",
    "pointer",
    "problem_of",
    "problem_of_http",
    "problem_response",
    "request_id",
    "serve",
]

MAX_ERRORS: Final = 100
RETRY_AFTER_SECONDS: Final = 1

NO_TELEMETRY: Final = TelemetryConfig(tracing=False, metrics=False, logs=False)
"""Of FastAPI's own: it asks for its settings again in every request. Ours is in taskledger.metrics."""

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_DEFAULTS: Final = HttpSettings()
_request_id: ContextVar[str] = ContextVar("taskledger_request_id", default="")
_logger = get_logger(__name__)

_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
_HEADER_NAMES: Final = frozenset(name for name, _ in _HEADERS)


class ProblemItem(BaseModel):
    location: str
    """A JSON Pointer into the body; what is wrong elsewhere begins with /query, /path or /header."""
    message: str


class Problem(BaseModel):
    """RFC 9457. `code` is stable and meant for programs, `detail` for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: list[ProblemItem] | None = None


@runtime_checkable
class _Located(Protocol):
    location: str
    message: str


def request_id() -> str:
    """Of the request being served; empty outside one."""
    return _request_id.get()


def json_response(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Times become RFC 3339 in UTC with Z; NaN and infinity become null."""
    return _JsonResponse(orjson.dumps(content, option=orjson.OPT_UTC_Z), status, headers or {})


class _JsonResponse(Response):
    """Starlette's constructor looks for what its callers may have left out."""

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [
            (name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()
        ]
        self.raw_headers.append((b"content-length", str(len(body)).encode()))
        self.raw_headers.append((b"content-type", b"application/json"))


def problem_response(
    status: int,
    code: str,
    detail: str,
    *,
    errors: Iterable[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """`errors` are pairs of location (a JSON Pointer) and message; the first 100 are shown."""
    REFUSALS.labels(code).inc()
    problem: dict[str, Any] = {
        "type": f"urn:taskledger:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request_id(),
    }
    items = [{"location": at, "message": message} for at, message in errors][:MAX_ERRORS]
    if items:
        problem["errors"] = items
    headers = {"Cache-Control": "no-store", **(headers or {})}
    if status in (429, 503):
        headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    return Response(orjson.dumps(problem), status, headers, "application/problem+json")


Edge = Callable[[ASGIApp], ASGIApp]
"""Wraps an application in the same middleware, with the same limits, as install() wraps FastAPI's."""


def install(app: FastAPI, http: HttpSettings = _DEFAULTS) -> Edge:
    """Problem documents for every error, and the middleware. Call it before adding routes."""
    room = Room(http.max_body_bytes_in_memory)
    app.router.redirect_slashes = False
    app.add_exception_handler(TaskledgerError, _on_our_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(AdmissionMiddleware, room=room)
    app.add_middleware(EdgeMiddleware)  # the outermost
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        return tidy(describe())

    app.__dict__["openapi"] = openapi  # FastAPI's documented way to change it is this assignment
    return lambda inner: EdgeMiddleware(AdmissionMiddleware(inner, room=room))


PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    "default": {"description": "A problem document (RFC 9457)", "model": Problem}
}
"""For `FastAPI(responses=PROBLEMS)` or a router: documents the errors of every route."""


def problem_of(error: TaskledgerError) -> Response:
    """Violations (objects with location and message), where the error has them, become `errors`."""
    found: Sequence[object] = getattr(error, "violations", ())
    errors = [(v.location, v.message) for v in found if isinstance(v, _Located)]
    status = 503 if error.retryable and error.status == HTTPStatus.INTERNAL_SERVER_ERROR else error.status
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _logger.error("request failed", code=error.code, reason=str(error), request_id=request_id())
    return problem_response(status, error.code, str(error), errors=errors)


async def _on_our_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, TaskledgerError)  # noqa: S101  Starlette's signature is wider
    return problem_of(error)


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    found: Sequence[Mapping[str, Any]] = error.errors()
    if any(e["type"] == "json_invalid" for e in found):
        return problem_response(400, "malformed_json", "the body is not JSON")
    items = [(pointer(e["loc"]), message_of(e)) for e in found[:MAX_ERRORS]]
    return problem_response(422, "invalid_request", "the request does not fit", errors=items)


_HTTP_CODES: Final = {
    404: ("not_found", "there is nothing at this path"),
    405: ("method_not_allowed", "the path does not support this method"),
    413: ("body_too_large", "the body is larger than this path accepts"),
    415: ("unsupported_media_type", "the body must be application/json"),
}


async def _on_http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    return problem_of_http(error)


def problem_of_http(error: HTTPException) -> Response:
    """Starlette's own errors, ours for their statuses."""
    status = error.status_code
    known = HTTPStatus(status)
    code, detail = _HTTP_CODES.get(status, (known.name.lower(), known.phrase))
    return problem_response(status, code, detail, headers=error.headers)


_ECHOING: Final = {
    "uuid_parsing": "Input should be a valid UUID",
    "union_tag_invalid": "Input has an unknown tag",
    "url_parsing": "Input should be a valid URL",
    "missing": "Field is required",
    "extra_forbidden": "Unknown field",
    "model_type": "Input should be an object",
}
"""pydantic's own text for these repeats input, or is worth saying better."""


def message_of(error: Mapping[str, Any]) -> str:
    """What to say of one of pydantic's errors; none of it is input."""
    return _ECHOING.get(error["type"]) or str(error["msg"])


def pointer(location: Iterable[str | int]) -> str:
    """A JSON Pointer from pydantic's location. Names a client made up are cut to 64 characters."""
    parts = [str(part)[:64].replace("~", "~0").replace("/", "~1") for part in location]
    if parts[:1] == ["body"]:
        parts = parts[1:]
    return "".join(f"/{part}" for part in parts)


class EdgeMiddleware:
    """The outermost layer of ours: request id, headers of every response, and the answer to what
    nobody expected. Plain ASGI: Starlette's BaseHTTPMiddleware costs a task per request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = _identity(scope)
        token = _request_id.set(identity)
        started = finished = False
        headless = scope["method"] == "HEAD"
        if headless:
            scope = {**scope, "method": "GET"}

        async def send_with_headers(message: Message) -> None:
            nonlocal started, finished
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": _complete(message.get("headers", ()), identity)}
            elif headless and message["type"] == "http.response.body":
                if finished:
                    return
                finished = True  # whatever would follow, perhaps for ever
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            refusal = _refusal(scope)
            await (refusal or self._app)(scope, receive, send_with_headers)
        except ClientDisconnect:
            _logger.debug("client went away", request_id=identity)
        except (Exception, asyncio.CancelledError) as error:
            answer = _last_answer(error, scope["path"])
            if started:
                raise
            await answer(scope, receive, send_with_headers)
        finally:
            _request_id.reset(token)


def _last_answer(error: BaseException, path: str) -> Response:
    if isinstance(error, TaskledgerError):
        return problem_of(error)
    if isinstance(error, asyncio.CancelledError):  # uvicorn's, once the time for stopping is over
        return problem_response(503, "stopping", "the process stopped before this was done")
    _logger.error("request failed", exc_info=error, request_id=request_id(), path=path)
    return problem_response(500, "internal_error", "something went wrong on our side")


def _identity(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return new_uid()


def _complete(headers: Iterable[tuple[bytes, bytes]], identity: str) -> list[tuple[bytes, bytes]]:
    present = [*headers, (b"x-request-id", identity.encode())]
    names = {name for name, _ in present}
    if names.isdisjoint(_HEADER_NAMES):
        present += _HEADERS
    else:
        present += [header for header in _HEADERS if header[0] not in names]
    return present


def _refusal(scope: Scope) -> Response | None:
    """NUL can be stored in no text column, and what is not UTF-8 is not text at all."""
    query: bytes = scope["query_string"]
    decoded = unquote_to_bytes(query.replace(b"+", b" ")) if query else b""
    if b"\0" in decoded or "\0" in scope["path"]:
        return problem_response(422, "invalid_request", "the address holds a NUL character")
    try:
        decoded.decode()
    except UnicodeDecodeError:
        return problem_response(422, "invalid_request", "the query is not UTF-8")
    return None
