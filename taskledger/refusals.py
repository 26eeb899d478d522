"""Problem documents from below the application: for what is no request, or comes to a full house."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import orjson

from events.ids import new_uid
from taskledger.metrics import REFUSALS

Headers = list[tuple[bytes, bytes]]

_STATUS_LINE: Final = "HTTP/1.1 {} {}\r\n"


class Refusal:
    """An ASGI application that reads nothing. The connection is closed after its answer."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        REFUSALS.labels(code).inc()
        identity = new_uid()
        document = {
            "type": f"urn:taskledger:problem:{code}",
            "title": code.replace("_", " ").capitalize(),
            "status": status,
            "code": code,
            "detail": detail,
            "request_id": identity,
        }
        self._status = HTTPStatus(status)
        self._body = orjson.dumps(document)
        self._headers: Headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(self._body)).encode()),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
            (b"x-request-id", identity.encode()),
        ]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self._headers.append((b"retry-after", b"1"))

    async def __call__(self, _scope: Any, _receive: Any, send: Callable[..., Any]) -> None:
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body})

    def as_bytes(self, more_headers: Headers) -> bytes:
        """The whole answer, for a connection on which there is no request to answer."""
        first = _STATUS_LINE.format(self._status.value, self._status.phrase).encode()
        fields = [name + b": " + value + b"\r\n" for name, value in [*more_headers, *self._headers]]
        return b"".join([first, *fields, b"\r\n", self._body])
