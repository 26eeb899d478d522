"""One request and its answer, as uvicorn has it; a plain answer is written in one piece."""

from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_BODILESS: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_LINES_AROUND: Final = 2
"""Of a head, beside its fields: the first one and the empty one."""


class Cycle(RequestResponseCycle):
    """uvicorn writes the head when the application begins its answer, after a look at every byte of it.
    Most answers are whole: their head can wait for the body, and is looked at once."""

    _start: Any = None

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and not self.response_started:
            self._start = message  # a later one stands in for it: the error that kept the body away
            return
        start, self._start = self._start, None
        if start is None:
            await super().send(message)
        elif not self._send_whole(start, message):
            await super().send(start)
            await super().send(message)

    def _send_whole(self, start: Any, message: Any) -> bool:
        """False, with nothing done, for an answer that is not plain: uvicorn knows what to do."""
        status, body = start["status"], message.get("body", b"")
        if (
            message.get("more_body", False)
            or not self.keep_alive
            or self.disconnected
            or self.flow.write_paused
            or self.scope["method"] == "HEAD"
            or status in _BODILESS
        ):
            return False
        fields = [*self.default_headers, *start.get("headers", ())]
        parts = [STATUS_LINE[status]]
        length = -1
        for name, value in fields:
            if name == b"content-length":
                length = int(value)
            elif name in (b"transfer-encoding", b"connection"):
                return False
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n")
        head = b"".join(parts)
        if length != len(body) or head.count(b"\n") != len(fields) + _LINES_AROUND:
            return False
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(head + body)
        self.message_event.set()
        self.on_response()
        return True
