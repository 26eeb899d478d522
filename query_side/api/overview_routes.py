"""GET /stats, /queues, /kinds, /workers."""

from collections.abc import Sequence

from fastapi import APIRouter, Depends
from starlette.responses import Response

from query_side.api import schemas
from query_side.api.answers import answer, plain
from query_side.api.params import only
from query_side.overview import Overview
from query_side.shapes import Json


def overview_routes(overview: Overview, kinds: Sequence[Json]) -> APIRouter:
    """`kinds` as query_side.overview.kinds() lists them: they change with the process only."""
    router = APIRouter(tags=["overview"], dependencies=[Depends(only())])

    @router.get("/stats", responses={200: {"model": schemas.Stats}}, summary="Counts and rates")
    async def stats() -> Response:
        return answer(*await overview.stats())

    @router.get("/queues", responses={200: {"model": schemas.Queues}}, summary="Depth, age, paused")
    async def queues() -> Response:
        snapshot, found = await overview.queues()
        return answer(snapshot, {"queues": found})

    @router.get("/workers", responses={200: {"model": schemas.Workers}}, summary="Live workers")
    async def workers() -> Response:
        snapshot, found = await overview.workers()
        return answer(snapshot, {"workers": found})

    @router.get("/kinds", responses={200: {"model": schemas.Kinds}}, summary="Kinds and their schemas")
    async def list_kinds() -> Response:
        return plain({"kinds": kinds})

    return router
