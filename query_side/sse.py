"""Server-sent events as they go over the wire. Pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from typing import Any, Final

import orjson

MEDIA_TYPE: Final = "text/event-stream"


def message(token: str, event_type: str, content: Any) -> bytes:
    """One event. JSON holds no line ends, so one `data` line is enough."""
    data = orjson.dumps(content, option=orjson.OPT_UTC_Z)
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (token.encode(), event_type.encode(), data)


def opening(token: str, retry_milliseconds: int) -> bytes:
    """How soon to come back, and from where if nothing else has been seen by then."""
    return b"retry: %d\nid: %b\n\n" % (retry_milliseconds, token.encode())


def position(token: str) -> bytes:
    """A sign of life that also carries the position on: an `id` without data changes what a client
    sends as Last-Event-ID, and is dispatched as no event."""
    return b": alive\nid: %b\n\n" % token.encode()
