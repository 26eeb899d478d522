"""HTTP/1.1 at the socket: the deadlines, limits and orderly end that uvicorn's protocol leaves open.

What comes in is bounded in time and size before there is a request, so that neither a silent socket nor
a trickle of bytes holds anything for long. What a client has sent is answered or was never taken: a
connection is closed between requests, never on top of one.
"""

import asyncio
import re
import select
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from functools import partial
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from taskledger.cycle import Cycle
from taskledger.gathering import GatheringTransport
from taskledger.lateness import LATENESS, lateness
from taskledger.refusals import Refusal
from taskledger.telemetry import get_logger

HEAD_SECONDS: Final = 10.0
"""From the connection, or a later request's first byte, to the end of the request's headers."""
BODY_SECONDS: Final = 30.0
"""From there to the end of its body."""
IDLE_SECONDS: Final = 75
"""Between requests. Longer than what balancers keep an idle connection for (mostly 60 s): whoever closes
first must be the one who sends, or a request meets a closed connection."""
READ_SECONDS: Final = 60.0
"""How long a client may leave an answer unread that is larger than the socket's buffers."""
LAST_SECONDS: Final = 2.0
"""For what was still arriving when the process stopped accepting."""
MAX_HEAD_BYTES: Final = 16 * 1024
MAX_FIELDS: Final = 64

ABORT: Final = "taskledger.abort"
"""ASGI extension: abort() drops the connection, with whatever its client has left unread."""

_PLAIN_PATH: Final = re.compile(rb"(?:/[A-Za-z0-9_-]+)+")
"""Of which there is nothing to take apart."""

_logger = get_logger(__name__)

Application = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]


class _Phase(Enum):
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    """The request is complete; it is our turn."""
    IDLE = auto()


class Door:
    """What all connections of a server share."""

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        self.leaving = False
        """Each answer is the last on its connection, so that clients move to another copy."""
        self.closed = False
        """Nobody comes in any more, and what has begun must end soon."""
        self.silent: dict[HttpConnection, None] = {}
        """Those that have not made a request yet, the oldest first."""
        self.idle: dict[HttpConnection, None] = {}
        """Those between two requests, the longest idle first."""

    def let_in(self, newcomer: "HttpConnection", present: int) -> bool:
        """Whether there is room, if need be after showing out whoever was quiet the longest; first of
        all one that has never asked for anything."""
        self.silent[newcomer] = None
        if present <= self.max_connections:
            return True
        for quiet in (self.silent, self.idle):
            for connection in quiet:
                if connection is not newcomer:
                    del quiet[connection]
                    connection.transport.close()
                    return True
        return False

    def forget(self, connection: "HttpConnection") -> None:
        """It has a request under way, or is gone."""
        self.silent.pop(connection, None)
        self.idle.pop(connection, None)


class ServerConfig(uvicorn.Config):
    """uvicorn's, for HTTP by HttpConnection."""

    def __init__(self, app: Any, *, max_connections: int, graceful_seconds: int) -> None:
        self.door = Door(max_connections)
        super().__init__(
            app,
            loop="uvloop",
            http=HttpConnection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here asks who called or how
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=graceful_seconds,
        )


class HttpConnection(HttpToolsProtocol):
    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, ServerConfig)  # noqa: S101  uvicorn hands on what it was given
        self._door = config.door
        self._phase = _Phase.HEAD
        self._timed: _Phase | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._crowded = False
        self._socket: Any = None
        self._extensions: dict[str, Any] = {}

    def leave(self) -> None:
        """The answer under way is the last one here."""
        cycle = self._current
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False

    def shutdown(self) -> None:
        """uvicorn's, once nobody is let in: a request that is on its way still gets its answer."""
        self.leave()
        if self._phase is _Phase.ANSWER:
            return
        if self._has_begun() or self._is_readable():
            self._start_timer(LAST_SECONDS)
        else:
            self.transport.close()

    # What asyncio calls

    def connection_made(self, transport: Any) -> None:
        super().connection_made(cast("asyncio.Transport", GatheringTransport(transport, self.loop)))
        self._socket = transport.get_extra_info("socket")
        # Knows nothing of this object: a request that did would keep its body until a garbage collection.
        self._extensions = {LATENESS: partial(lateness, transport, self._socket), ABORT: transport.abort}
        self._crowded = not self._door.let_in(self, len(self.connections))
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.forget(self)
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        self._timer = self._unread = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        parser: Any = self.parser  # the checkers differ over whether uvicorn lets it be None
        if self._phase is _Phase.IDLE:
            self._phase = _Phase.HEAD
            self._door.forget(self)
        if self._phase is _Phase.HEAD:
            self._head_bytes += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.leave()  # the offer is not taken up, and what follows may be another protocol
        except httptools.HttpParserError as error:
            self._on_malformed(error)
        else:
            if self._phase is _Phase.HEAD and self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "headers_too_large", "the headers are larger than this server accepts")
            self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    # What the parser calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = _Phase.HEAD
        if self._current is not None:  # else the deadline runs from the connection
            self._head_bytes = 0
            self._timed = None

    def on_headers_complete(self) -> None:
        """uvicorn's own, without what is switched off here (WebSockets, its limits, a root path), with
        our cycle."""
        self._phase = _Phase.BODY
        self._door.forget(self)
        self._complete_scope()
        before, version = self._current, self.scope["http_version"]
        parser: Any = self.parser
        cycle = self.cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive() and not self._door.leaving,
            on_response=self.on_response_complete,
        )
        application = self._refusal() or cast("Application", self.config.loaded_app)
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, application)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, application))

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._phase = _Phase.ANSWER
        if self.cycle.response_complete:  # the answer did not wait for the body
            self._become_idle()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._phase is _Phase.ANSWER and self.cycle.response_complete:
            self._become_idle()

    # What follows from it

    def _complete_scope(self) -> None:
        """Raises httptools.HttpParserInvalidURLError and UnicodeDecodeError."""
        scope, url = self.scope, self.url
        parser: Any = self.parser
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = parser.get_http_version()
        scope["extensions"] = self._extensions
        path, query = url, b""
        if _PLAIN_PATH.fullmatch(url) is None:
            parsed = httptools.parse_url(url)
            path, query = parsed.path, parsed.query or b""
        text = path.decode("ascii")
        scope["path"] = unquote(text) if "%" in text else text
        scope["raw_path"] = path
        scope["query_string"] = query

    @property
    def _current(self) -> RequestResponseCycle | None:
        """The request that came last; uvicorn says nothing of there being none at first."""
        return cast("RequestResponseCycle | None", self.cycle)

    def _become_idle(self) -> None:
        self._phase = _Phase.IDLE
        self._head_bytes = 0
        if not self.transport.is_closing():
            self._door.idle[self] = None

    def _has_begun(self) -> bool:
        """Part of a request is here, and the rest is not."""
        return self._phase is _Phase.BODY or (self._phase is _Phase.HEAD and self._head_bytes > 0)

    def _is_readable(self) -> bool:
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _watch(self) -> None:
        """Times the phase that the connection is in, unless that is done already."""
        if self._phase is self._timed or self.transport.is_closing():
            return
        self._timed = self._phase
        seconds = {_Phase.HEAD: HEAD_SECONDS, _Phase.BODY: BODY_SECONDS}.get(self._phase)
        if seconds is not None:
            self._start_timer(LAST_SECONDS if self._door.closed else seconds)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self.pipeline:  # nothing is read until earlier requests are answered: not the client's fault
            self._start_timer(HEAD_SECONDS)
        elif self._has_begun():
            self._refuse(408, "request_timeout", "the request did not arrive in time")
        elif self._phase is not _Phase.ANSWER:
            self.transport.close()

    def _refusal(self) -> "Refusal | None":
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_FIELDS:
            return Refusal(431, "headers_too_large", "the headers are larger than this server accepts")
        if self._crowded:
            return Refusal(503, "overloaded", "too many connections are open")
        return None

    def _on_malformed(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if cause is None or isinstance(cause, httptools.HttpParserError | UnicodeError):
            _logger.debug("not HTTP", client=self.client)
        else:
            _logger.error("request failed", exc_info=cause)
        self._refuse(400, "malformed_request", "this is not HTTP/1.1")

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answers in the application's place and closes. Only where the client cannot take the answer
        for that of an earlier request, which may succeed; it is then the last one instead."""
        cycle = self._current
        if cycle is not None and not cycle.response_complete:
            if self._phase is not _Phase.BODY or self.pipeline or cycle.response_started:
                cycle.keep_alive = False
                return
            cycle.disconnected = True
            cycle.message_event.set()
        elif self._phase is _Phase.BODY:  # answered, while its body was still arriving
            self.transport.close()
            return
        refusal = Refusal(status, code, detail)
        self.transport.write(refusal.as_bytes(self.server_state.default_headers))
        self.transport.close()
