"""GET /stats, /queues, /kinds, /workers."""

from collections.abc import Sequence

from fastapi import APIRouter, Depends
from starlette.responses import Response

from query_side.api import schemas
from query_side.api.answers import answer, plain
from query_side.api.params import AsOfParam, only
from query_side.api.params import as_of as parse_as_of
from query_side.overview import Overview
from query_side.past_stats import PastStats
from query_side.shapes import Json


def overview_routes(overview: Overview, past: PastStats, kinds: Sequence[Json]) -> APIRouter:
    """`kinds` as query_side.overview.kinds() lists them: they change with the process only."""
    router = APIRouter(tags=["overview"])
    nothing = [Depends(only())]

    @router.get(
        "/stats",
        responses={200: {"model": schemas.Stats}},
        summary="Counts and rates, now or as they were",
        dependencies=[Depends(only("as_of"))],
    )
    async def stats(as_of: AsOfParam = None) -> Response:
        if as_of is None:
            return answer(*await overview.stats())
        return answer(*await past.at(parse_as_of(as_of)))

    @router.get(
        "/queues",
        responses={200: {"model": schemas.Queues}},
        summary="Depth, age, paused",
        dependencies=nothing,
    )
    async def queues() -> Response:
        snapshot, found = await overview.queues()
        return answer(snapshot, {"queues": found})

    @router.get(
        "/workers",
        responses={200: {"model": schemas.Workers}},
        summary="Live workers",
        dependencies=nothing,
    )
    async def workers() -> Response:
        snapshot, found = await overview.workers()
        return answer(snapshot, {"workers": found})

    @router.get(
        "/kinds",
        responses={200: {"model": schemas.Kinds}},
        summary="Kinds and their schemas",
        dependencies=nothing,
    )
    async def list_kinds() -> Response:
        return plain({"kinds": kinds})

    return router
