"""GET /usage."""

from fastapi import APIRouter, Depends
from starlette.responses import Response

from query_side.api import schemas
from query_side.api.answers import answer
from query_side.api.params import DayFrom, DayTo, OneTagParam, only
from query_side.usage import Usage, period


def usage_routes(usage: Usage) -> APIRouter:
    router = APIRouter(tags=["overview"])

    @router.get(
        "/usage",
        responses={200: {"model": schemas.UsagePage}},
        summary="What days cost, by tag",
        dependencies=[Depends(only("from", "to", "tag"))],
    )
    async def get_usage(first: DayFrom = None, last: DayTo = None, tag: OneTagParam = None) -> Response:
        asked = period(first, last)
        snapshot, rows = await usage.of(asked, tag)
        return answer(snapshot, {"from": asked.first, "to": asked.last, "usage": rows})

    return router
