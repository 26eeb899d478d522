"""Commands to one task: what its worker says of it, and what its owner wants of it."""

import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from command_side.api import openapi
from command_side.api.body import Model, read
from command_side.api.claims import given_up
from command_side.api.context import Api, origin, task_id_of
from command_side.api.leases import holder_of
from command_side.api.schemas import (
    Because,
    Completion,
    Failure,
    Heartbeat,
    LeaseAnswer,
    Start,
    StartedTask,
    TaskAnswer,
)
from command_side.commands import (
    CancelTask,
    CompleteTask,
    DiscardTask,
    FailTask,
    RequeueTask,
    StartTask,
    TaskCommand,
)
from command_side.errors import AttemptSuperseded, TaskNotFound, WrongState
from command_side.service import Origin
from events.task_events import TaskError
from events.task_state import TaskState
from taskledger.http import json_response

_DONE = ("The task as it is now", TaskAnswer)


class TaskRoutes:
    def __init__(self, api: Api) -> None:
        self._api = api

    def router(self) -> APIRouter:
        router = APIRouter(tags=["tasks"])

        def add(
            name: str,
            endpoint: Callable[..., Awaitable[Response]],
            summary: str,
            body: type[BaseModel],
            **documented: tuple[str, type[BaseModel]],
        ) -> None:
            router.add_api_route(
                f"/tasks/{{task_id}}/{name}",
                endpoint,
                methods=["POST"],
                summary=summary,
                response_model=None,
                responses=openapi.answers(404, 409, **documented),
                openapi_extra=openapi.body(body, required=body is not Because),
            )

        add("start", self.start, "Start a queued task", Start, s200=("Started", StartedTask))
        add("complete", self.complete, "Report an attempt's result", Completion, s200=_DONE)
        add("fail", self.fail, "Report that an attempt failed", Failure, s200=_DONE)
        add("heartbeat", self.heartbeat, "Renew a lease", Heartbeat, s200=("Renewed", LeaseAnswer))
        requested = ("Requested: its worker has been told to stop", TaskAnswer)
        add("cancel", self.cancel, "Cancel a task", Because, s200=("Cancelled", TaskAnswer), s202=requested)
        add("requeue", self.requeue, "Queue a dead or cancelled task again", Because, s200=_DONE)
        add("discard", self.discard, "Give up a dead or cancelled task", Because, s200=_DONE)
        return router

    async def start(self, task_id: str, request: Request) -> Response:
        api = self._api
        id_, body = task_id_of(task_id), await self._read(request, Start)
        await api.database.ready()
        state, expires_at = await api.within_budget(self._start(id_, body, origin(request)))
        return json_response(api.started(state, expires_at))

    async def complete(self, task_id: str, request: Request) -> Response:
        id_, body = task_id_of(task_id), await self._read(request, Completion)
        return await self._execute(request, id_, CompleteTask(body.attempt, body.result))

    async def fail(self, task_id: str, request: Request) -> Response:
        id_, body = task_id_of(task_id), await self._read(request, Failure)
        command = FailTask(
            body.attempt,
            "error",
            TaskError(**body.error.model_dump()),
            retryable=body.retryable,
            jitter=random.random(),  # noqa: S311  backoff
        )
        return await self._execute(request, id_, command)

    async def heartbeat(self, task_id: str, request: Request) -> Response:
        api = self._api
        id_, body = task_id_of(task_id), await self._read(request, Heartbeat)
        await api.database.ready()
        state = await api.within_budget(self._load(id_, origin(request)))
        if state.status != "running" or state.attempt != body.attempt:
            raise AttemptSuperseded(body.attempt, state.attempt)
        holder = holder_of(id_, body.attempt)
        if state.holder != holder:
            raise WrongState("one of our own worker processes runs the attempt and renews it itself")
        note = await api.within_budget(api.service.sealing.note(state, body.attempt, body.note))
        expires_at = await api.within_budget(api.leases.renew(holder, body.progress, note))
        return json_response({"lease_expires_at": expires_at, "cancel_requested": state.cancel_requested})

    async def cancel(self, task_id: str, request: Request) -> Response:
        id_, body = task_id_of(task_id), await self._read(request, Because, optional=True)
        return await self._execute(request, id_, CancelTask(reason=body.reason))

    async def requeue(self, task_id: str, request: Request) -> Response:
        id_, body = task_id_of(task_id), await self._read(request, Because, optional=True)
        return await self._execute(request, id_, RequeueTask(reason=body.reason))

    async def discard(self, task_id: str, request: Request) -> Response:
        id_, body = task_id_of(task_id), await self._read(request, Because, optional=True)
        return await self._execute(request, id_, DiscardTask(reason=body.reason))

    async def _read(self, request: Request, model: type[Model], *, optional: bool = False) -> Model:
        limit = self._api.settings.max_body_bytes
        return (await read(request, model, limit=limit, optional=optional))[0]

    async def _execute(self, request: Request, task_id: UUID, command: TaskCommand) -> Response:
        api = self._api
        await api.database.ready()
        applied = await api.within_budget(api.service.execute(task_id, command, origin(request)))
        state = applied.state
        requested = isinstance(command, CancelTask) and state.status == "running"
        return json_response(api.answer(state, applied.position), status=202 if requested else 200)

    async def _load(self, task_id: UUID, origin: Origin) -> TaskState:
        state = (await self._api.service.load([task_id])).get(task_id)
        if state is None or state.tenant != origin.tenant:
            raise TaskNotFound
        return state

    async def _start(self, task_id: UUID, body: Start, origin: Origin) -> tuple[TaskState, datetime]:
        api = self._api
        state = await self._load(task_id, origin)
        _, paused = await api.service.load_with_paused([], [(state.tenant, state.queue)])
        if paused:
            raise WrongState("the task's queue is paused")
        applied = await api.service.execute_on(state, StartTask(holder=None, worker=body.worker), origin)
        if not await given_up(api.service, [applied.state], origin):
            raise WrongState("the task's data was erased: it is dead now")
        holder = holder_of(task_id, applied.state.attempt)
        return applied.state, await api.leases.grant([holder], body.lease_seconds)
