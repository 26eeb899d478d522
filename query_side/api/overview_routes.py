"""GET /stats, /queues, /kinds, /workers."""

from collections.abc import Sequence

from fastapi import APIRouter, Depends
from starlette.responses import Response

from query_side.api import schemas
from query_side.api.answers import answer, plain
from query_side.api.params import AsOfParam, PositionParam, only, token
from query_side.api.params import as_of as parse_as_of
from query_side.errors import InvalidQuery
from query_side.overview import Overview
from query_side.past_stats import PastStats
from query_side.shapes import Json


def overview_routes(overview: Overview, past: PastStats, kinds: Sequence[Json]) -> APIRouter:
    """`kinds` as query_side.overview.kinds() lists them: they change with the process only."""
    router = APIRouter(tags=["overview"])
    positioned, bare = [Depends(only("min_position"))], [Depends(only())]

    @router.get(
        "/stats",
        responses={200: {"model": schemas.Stats}},
        summary="Counts and rates, now or as they were",
        dependencies=[Depends(only("as_of", "min_position"))],
    )
    async def stats(as_of: AsOfParam = None, min_position: PositionParam = None) -> Response:
        if as_of is None:
            return answer(*await overview.stats(token(min_position)))
        if min_position is not None:
            raise InvalidQuery("min_position", "The past has one position: as_of")
        return answer(*await past.at(parse_as_of(as_of)))

    @router.get(
        "/queues",
        responses={200: {"model": schemas.Queues}},
        summary="Depth, age, paused",
        dependencies=positioned,
    )
    async def queues(min_position: PositionParam = None) -> Response:
        snapshot, found = await overview.queues(token(min_position))
        return answer(snapshot, {"queues": found})

    @router.get(
        "/workers",
        responses={200: {"model": schemas.Workers}},
        summary="Live workers",
        dependencies=positioned,
    )
    async def workers(min_position: PositionParam = None) -> Response:
        snapshot, found = await overview.workers(token(min_position))
        return answer(snapshot, {"workers": found})

    @router.get(
        "/kinds",
        responses={200: {"model": schemas.Kinds}},
        summary="Kinds and their schemas",
        dependencies=bare,
    )
    async def list_kinds() -> Response:
        return plain({"kinds": kinds})

    return router
