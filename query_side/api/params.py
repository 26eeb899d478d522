"""What the query API's parameters may be. Strict: nothing is coerced, repeated or ignored."""

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final

from fastapi import Header, Query, Request
from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from events.codec import RECORD_FAMILIES
from events.position import PositionToken
from events.records import topics
from events.task_state import Status
from query_side.errors import InvalidQuery
from query_side.feed import FeedStart
from query_side.moments import AsOf

MAX_LIMIT: Final = 200
MAX_WAIT_SECONDS: Final = 60
MAX_TAGS: Final = 16

_RFC3339: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def instant(text: str) -> datetime:
    """RFC 3339 with an offset, in UTC; digits below the microsecond are cut off."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise _not_a_time()
    date, time, fraction, offset = match.groups()
    zone = "+00:00" if offset in "Zz" else offset
    try:
        found = datetime.fromisoformat(f"{date}T{time}.{(fraction or '')[:6]:0<6}{zone}")
        return found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _not_a_time() from None


def _not_a_time() -> PydanticCustomError:
    return PydanticCustomError(
        "time", "Input should be an RFC 3339 time with an offset ('+' is written %2B in an address)"
    )


def day(text: str) -> date:
    """As in 2026-11-26."""
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
        try:
            return date.fromisoformat(text)
        except ValueError:
            pass
    raise PydanticCustomError("day", "Input should be a day, as in 2026-11-26")


def as_of(text: str) -> AsOf:
    """A time or a position token, told apart by the date's hyphens. Raises InvalidQuery for what is no
    time, MalformedPosition for what is no token."""
    if "-" not in text:
        return PositionToken.parse(text)
    try:
        return instant(text)
    except PydanticCustomError as error:
        raise InvalidQuery("as_of", error.message()) from None


def feed_start(text: str) -> FeedStart:
    match text:
        case "start":
            return "start"
        case "now":
            return "now"
        case _:
            return PositionToken.parse(text)


def _digits(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,9}", value, re.ASCII):
        raise PydanticCustomError("digits", "Input should be a whole number")
    return value


def _decimal(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value, re.ASCII):
        raise PydanticCustomError("decimal", "Input should be a number of seconds")
    return value


def _size(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII):
        raise PydanticCustomError("digits", "Input should be a whole number")
    return value


EVENT_TYPES: Final = sorted(topic for family in RECORD_FAMILIES for topic in topics(family))


def _event_type(text: str) -> str:
    if text not in EVENT_TYPES:
        raise PydanticCustomError("event_type", "Input should be a type of event, such as TaskCompleted")
    return text


_NAME: Final = r"^[a-z][a-z0-9_.-]{0,63}$"

StatusParam = Annotated[Status | None, Query()]
KindParam = Annotated[str | None, Query(pattern=_NAME)]
QueueParam = Annotated[str | None, Query(pattern=_NAME)]
TagParam = Annotated[
    list[Annotated[str, Query(pattern=_NAME)]],
    Query(alias="tag", max_length=MAX_TAGS, description="Repeated: the task has all of them."),
]
_EventType = Annotated[str, AfterValidator(_event_type), Query(json_schema_extra={"enum": EVENT_TYPES})]
TypeParam = Annotated[
    list[_EventType],
    Query(alias="type", max_length=len(EVENT_TYPES), description="Repeated: the event is of one of them."),
]
_Instant = Annotated[datetime, BeforeValidator(instant)]
CreatedAfter = Annotated[_Instant | None, Query(description="Inclusive. RFC 3339 with an offset.")]
CreatedBefore = Annotated[_Instant | None, Query(description="Exclusive. RFC 3339 with an offset.")]
_Day = Annotated[date, BeforeValidator(day)]
DayFrom = Annotated[_Day | None, Query(alias="from", description="First day, UTC. 30 days if not given.")]
DayTo = Annotated[
    _Day | None, Query(alias="to", description="Last day, UTC, included. Today if not given.")
]
OneTagParam = Annotated[str | None, Query(alias="tag", pattern=_NAME)]
LimitParam = Annotated[int, BeforeValidator(_digits), Query(ge=1, le=MAX_LIMIT)]
CursorParam = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")]
WaitParam = Annotated[
    float,
    BeforeValidator(_decimal),
    Query(ge=0, le=MAX_WAIT_SECONDS, description="Answer when the task is settled, or after this long."),
]
PositionParam = Annotated[
    str | None, Query(max_length=40, description="Wait until the read table has reached this position.")
]


def token(text: str | None) -> PositionToken | None:
    """Raises MalformedPosition."""
    return None if text is None else PositionToken.parse(text)


AsOfParam = Annotated[
    str | None, Query(max_length=40, description="As it was: RFC 3339 time or position token.")
]
AfterParam = Annotated[
    str, Query(max_length=40, description="`start`, `now` or a position token: events above it.")
]
LastEventId = Annotated[
    str | None,
    Header(max_length=40, description="Of an event stream: the last id seen. Wins over `after`."),
]


SizeParam = Annotated[
    int, BeforeValidator(_size), Query(alias="from", ge=1, description="The `size` of an older head.")
]


def only(*names: str, repeated: Collection[str] = ()) -> Callable[[Request], Awaitable[None]]:
    """A dependency: the query has these parameters and no other, each once but for `repeated`. An
    unknown or doubled one is more likely a mistake than a wish, and would change nothing silently."""

    async def check(request: Request) -> None:
        given = Counter(name for name, _ in request.query_params.multi_items())
        for name, count in given.items():
            if name not in names:
                raise InvalidQuery(name[:64], "Unknown parameter")
            if count > 1 and name not in repeated:
                raise InvalidQuery(name, "Given more than once")

    return check
