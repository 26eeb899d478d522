"""GET /usage."""

from functools import partial

from fastapi import APIRouter, Depends
from starlette.responses import Response

from query_side.api import schemas
from query_side.api.answers import answer
from query_side.api.params import DayFrom, DayTo, OneTagParam, PositionParam, only, token
from query_side.consistency import polled
from query_side.usage import Usage, period


def usage_routes(usage: Usage) -> APIRouter:
    router = APIRouter(tags=["overview"])

    @router.get(
        "/usage",
        responses={200: {"model": schemas.UsagePage}},
        summary="What days cost, by tag",
        dependencies=[Depends(only("from", "to", "tag", "min_position"))],
    )
    async def get_usage(
        first: DayFrom = None,
        last: DayTo = None,
        tag: OneTagParam = None,
        min_position: PositionParam = None,
    ) -> Response:
        asked = period(first, last)
        read = partial(usage.of, asked, tag)
        snapshot, rows = await polled(token(min_position), read, "the projection usage")
        return answer(snapshot, {"from": asked.first, "to": asked.last, "usage": rows})

    return router
