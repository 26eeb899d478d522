"""GET /events, /tasks/{id}/events: as they are now, or live as an event stream."""

from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from events.position import PositionToken
from query_side import sse
from query_side.api import schemas
from query_side.api.answers import answer, known_task
from query_side.api.event_stream import EventStream, wants_stream
from query_side.api.params import (
    AfterParam,
    KindParam,
    LastEventId,
    LimitParam,
    PositionParam,
    QueueParam,
    TagParam,
    TypeParam,
    feed_start,
    only,
    token,
)
from query_side.errors import InvalidQuery
from query_side.feed import FeedStart, LogFeed, shown, within
from query_side.feed_filter import FeedFilter
from query_side.history import History
from query_side.live import Streams
from query_side.read_model import Snapshot

_DEFAULT_LIMIT: Final = 50
_STREAM: Final[dict[str, Any]] = {
    sse.MEDIA_TYPE: {
        "schema": {
            "type": "string",
            "description": "With `Accept: text/event-stream`: goes on live. An event's id is its position,"
            " its data one line of JSON, as in the feed. Resumes after `Last-Event-ID`.",
        }
    }
}
_GONE: Final = {
    "description": "Event stream of a task to which nothing can happen any more, and nothing has"
}


def feed_routes(feed: LogFeed, history: History, streams: Streams) -> APIRouter:
    router = APIRouter(tags=["feed"])

    @router.get(
        "/events",
        responses={200: {"model": schemas.Feed, "content": _STREAM}},
        summary="The log after a position, once or live",
        dependencies=[
            Depends(
                only(
                    "after",
                    "limit",
                    "kind",
                    "queue",
                    "tag",
                    "type",
                    "min_position",
                    repeated=("tag", "type"),
                )
            )
        ],
    )
    async def events(
        request: Request,
        *,
        after: AfterParam = "start",
        limit: LimitParam = _DEFAULT_LIMIT,
        kind: KindParam = None,
        queue: QueueParam = None,
        tags: TagParam = [],  # noqa: B006  FastAPI copies it
        types: TypeParam = [],  # noqa: B006
        min_position: PositionParam = None,
        last_event_id: LastEventId = None,
    ) -> Response:
        wanted = FeedFilter(kind, queue, frozenset(tags), frozenset(types))
        if wants_stream(request):
            _refuse(request, "limit", "min_position")
            return EventStream(streams.open(_start(after, last_event_id), wanted))
        page = await feed.page(feed_start(after), limit, wanted)
        _check(min_position, page.log)
        content = {
            "events": [shown(event, page) for event in page.events],
            "next": page.log.token_of(page.reached),
            "head": page.log.token,
        }
        return answer(page.log, content, vary="Accept")

    @router.get(
        "/tasks/{task_id}/events",
        responses={200: {"model": schemas.TaskEvents, "content": _STREAM}, 204: _GONE},
        tags=["tasks"],
        summary="Everything that happened to a task, in order, once or live",
        dependencies=[Depends(only("after", "min_position"))],
    )
    async def task_events(
        request: Request,
        task_id: str,
        after: AfterParam = "start",
        min_position: PositionParam = None,
        last_event_id: LastEventId = None,
    ) -> Response:
        known = known_task(task_id)
        if wants_stream(request):
            _refuse(request, "min_position")
            start = _start(after, last_event_id)
            return EventStream(streams.open(start, FeedFilter(task_id=known)))
        log, found = await history.events(known, feed_start(after))
        _check(min_position, log)
        return answer(log, {"events": found}, vary="Accept")

    return router


def _refuse(request: Request, *parameters: str) -> None:
    """A stream is as new as the log, and has no end."""
    for parameter in parameters:
        if parameter in request.query_params:
            raise InvalidQuery(parameter, "Not of an event stream, which begins after a position")


def _check(min_position: str | None, log: Snapshot) -> None:
    """What is read from the log itself is at every position that there is: raises as within()."""
    position = token(min_position)
    if position is not None:
        within(position, log)


def _start(after: str, last_event_id: str | None) -> FeedStart:
    """A client that comes back asks the same address again, with the last id that it has seen."""
    return feed_start(after) if last_event_id is None else PositionToken.parse(last_event_id)
