"""Health over HTTP for processes that serve nothing else, and the question asked by whoever watches.

`GET /health/live` and `GET /health/ready` as on the APIs: 200, or 503 and what is missing; `GET /metrics`.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

from events.errors import ConfigurationError
from taskledger.metrics import exposition
from taskledger.settings import HealthSettings

SILENT_SECONDS: Final = 5.0
"""A loop that has not ticked for this long is not live."""
ANSWER_SECONDS: Final = 3.0
OK: Final = int(HTTPStatus.OK)


@dataclass(frozen=True, slots=True)
class Health:
    """What a process says about itself."""

    live: bool = True
    missing: Sequence[str] = ()
    """What it cannot work without right now, one line each; empty: ready."""


class Heartbeat:
    """Ticked by a loop and read by another thread: a blocked loop cannot answer for itself."""

    def __init__(self, silent_seconds: float = SILENT_SECONDS) -> None:
        self._silent_seconds = silent_seconds
        self._ticked = time.monotonic()

    def tick(self) -> None:
        self._ticked = time.monotonic()

    def alive(self) -> bool:
        return time.monotonic() - self._ticked < self._silent_seconds


@contextmanager
def health_server(settings: HealthSettings, status: Callable[[], Health]) -> Generator[int | None]:
    """Answers from a thread of its own for the length of the block; yields the port, or None where
    the setting is 0. `status` is called in that thread and must not block.

    Raises ConfigurationError when the port cannot be had.
    """
    if settings.port == 0:
        yield None
        return
    try:
        server = ThreadingHTTPServer((settings.host, settings.port), _handler(status))
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror});"
            " TASKLEDGER__HEALTH__PORT moves it"
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(url: str) -> str | None:
    """None if `url` answers 200, else why not, in a few words. Follows no redirect and no proxy."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigurationError(f"{url} is no http:// address")
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", parts.path or "/health/ready")
        response = connection.getresponse()
        body = response.read(65_536)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return None if response.status == OK else _detail(body) or f"HTTP {response.status}"


def _detail(body: bytes) -> str:
    try:
        document: Any = json.loads(body)
    except ValueError:
        return ""
    return str(document.get("detail", "")) if isinstance(document, dict) else ""  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] (JSON)


def _answer(path: str, health: Health) -> tuple[int, dict[str, Any]]:
    match path:
        case "/health/live":
            return (OK, {"status": "live"}) if health.live else _not("live", "the main loop does not tick")
        case "/health/ready":
            missing = [*([] if health.live else ["the main loop does not tick"]), *health.missing]
            return _not("ready", "; ".join(missing)) if missing else (OK, {"status": "ready"})
        case _:
            return 404, {"title": "Not found", "status": 404, "code": "not_found"}


def _not(what: str, detail: str) -> tuple[int, dict[str, Any]]:
    return 503, {"title": f"Not {what}", "status": 503, "code": f"not_{what}", "detail": detail}


def _handler(status: Callable[[], Health]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = ANSWER_SECONDS  # of a silent socket

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._send(OK, *exposition(self.headers.get("Accept", "")))
                return
            code, document = _answer(path, status())
            media_type = "application/json" if code == OK else "application/problem+json"
            self._send(code, json.dumps(document).encode(), media_type)

        def _send(self, code: int, body: bytes, media_type: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's name)
            """A watcher asks every few seconds: nothing to note."""

    return Handler
