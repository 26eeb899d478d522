"""GET /tasks/{id}/proof, /proof/head, /proof/consistency."""

from fastapi import APIRouter, Depends
from starlette.responses import Response

from query_side.api import schemas
from query_side.api.answers import known_task, plain
from query_side.api.params import SizeParam, only
from query_side.proof import Proofs


def proof_routes(proofs: Proofs) -> APIRouter:
    router = APIRouter(tags=["proof"])

    @router.get(
        "/tasks/{task_id}/proof",
        responses={200: {"model": schemas.TaskProof}},
        summary="That a task's events are in the log, for anybody to check",
        dependencies=[Depends(only())],
    )
    async def task_proof(task_id: str) -> Response:
        return plain(await proofs.of_task(known_task(task_id)))

    @router.get(
        "/proof/head",
        responses={200: {"model": schemas.ProofHead}},
        summary="The newest signed head of the tree over the log",
        dependencies=[Depends(only())],
    )
    async def head() -> Response:
        return plain(await proofs.head())

    @router.get(
        "/proof/consistency",
        responses={200: {"model": schemas.Consistency}},
        summary="That the log only grew since an older head",
        dependencies=[Depends(only("from"))],
    )
    async def consistency(size: SizeParam) -> Response:
        return plain(await proofs.consistency(size))

    return router
