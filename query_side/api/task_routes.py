"""GET /tasks, /tasks/{id}, /tasks/{id}/explain, /dead-letters."""

from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from query_side.api import schemas
from query_side.api.answers import answer, known_task, tagged
from query_side.api.params import (
    AsOfParam,
    CreatedAfter,
    CreatedBefore,
    CursorParam,
    KindParam,
    LimitParam,
    PositionParam,
    QueueParam,
    StatusParam,
    TagParam,
    WaitParam,
    only,
    token,
)
from query_side.api.params import (
    as_of as parse_as_of,
)
from query_side.errors import InvalidQuery
from query_side.explain.gather import Explanations
from query_side.feed import within
from query_side.history import History
from query_side.past import Past
from query_side.tasks import Filters, Tasks

_PAGE: Final[dict[int | str, dict[str, Any]]] = {200: {"model": schemas.TaskPage}}
_DEFAULT_LIMIT: Final = 50


def task_routes(tasks: Tasks, past: Past, history: History, explanations: Explanations) -> APIRouter:
    router = APIRouter(tags=["tasks"])

    @router.get(
        "/tasks",
        responses=_PAGE,
        summary="Tasks, newest first, now or as they were",
        dependencies=[
            Depends(
                only(
                    "status",
                    "kind",
                    "queue",
                    "tag",
                    "created_after",
                    "created_before",
                    "limit",
                    "cursor",
                    "as_of",
                    "min_position",
                    repeated=("tag",),
                )
            )
        ],
    )
    async def list_tasks(
        *,
        status: StatusParam = None,
        kind: KindParam = None,
        queue: QueueParam = None,
        tags: TagParam = [],  # noqa: B006  FastAPI copies it
        created_after: CreatedAfter = None,
        created_before: CreatedBefore = None,
        limit: LimitParam = _DEFAULT_LIMIT,
        cursor: CursorParam = None,
        as_of: AsOfParam = None,
        min_position: PositionParam = None,
    ) -> Response:
        filters = Filters(status, kind, queue, tags, created_after, created_before)
        if as_of is None:
            snapshot, page = await tasks.page("tasks", filters, limit, cursor, token(min_position))
        elif min_position is None:
            snapshot, page = await past.page(filters, limit, parse_as_of(as_of), cursor)
        else:
            raise InvalidQuery("min_position", "The past has one position: as_of")
        return answer(snapshot, {"tasks": page.tasks, "next_cursor": page.next_cursor})

    @router.get(
        "/dead-letters",
        responses=_PAGE,
        summary="Dead tasks with their last error, newest first",
        dependencies=[
            Depends(only("kind", "queue", "tag", "limit", "cursor", "min_position", repeated=("tag",)))
        ],
    )
    async def dead_letters(
        *,
        kind: KindParam = None,
        queue: QueueParam = None,
        tags: TagParam = [],  # noqa: B006  FastAPI copies it
        limit: LimitParam = _DEFAULT_LIMIT,
        cursor: CursorParam = None,
        min_position: PositionParam = None,
    ) -> Response:
        filters = Filters("dead", kind, queue, tags)
        snapshot, page = await tasks.page("dead-letters", filters, limit, cursor, token(min_position))
        return answer(snapshot, {"tasks": page.tasks, "next_cursor": page.next_cursor})

    @router.get(
        "/tasks/{task_id}",
        responses={200: {"model": schemas.Task}, 304: {"description": "The client has it already"}},
        summary="One task, now, once settled, or as it was",
        dependencies=[Depends(only("wait_seconds", "min_position", "as_of"))],
    )
    async def get_task(
        request: Request,
        task_id: str,
        wait_seconds: WaitParam = 0.0,
        min_position: PositionParam = None,
        as_of: AsOfParam = None,
    ) -> Response:
        known = known_task(task_id)
        position = token(min_position)
        if as_of is None:
            snapshot, task = await tasks.get(known, min_position=position, wait_seconds=wait_seconds)
        elif position is not None or wait_seconds:
            raise InvalidQuery("as_of", "The past needs no waiting: not with min_position or wait_seconds")
        else:
            snapshot, task = await history.as_of(known, parse_as_of(as_of))
        return tagged(request, snapshot, task)

    @router.get(
        "/tasks/{task_id}/explain",
        responses={200: {"model": schemas.Explanation}},
        summary="Why the task is not running, or how it ended",
        dependencies=[Depends(only("min_position"))],
    )
    async def explain(task_id: str, min_position: PositionParam = None) -> Response:
        snapshot, explanation = await explanations.of(known_task(task_id))
        if (asked := token(min_position)) is not None:
            within(asked, snapshot)  # the log is at every position that there is
        return answer(snapshot, explanation)

    return router
