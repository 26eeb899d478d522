"""`POST /tasks` and `POST /tasks/batch`."""

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from command_side.api import openapi
from command_side.api.body import idempotency_key, keyed, read
from command_side.api.context import Api, origin
from command_side.api.schemas import BatchAnswer, NewTask, NewTasks, TaskAnswer
from command_side.errors import InvalidCommand, Violation
from events.deadline import until
from taskledger.admission import due
from taskledger.direct import Routes
from taskledger.http import json_response
from taskledger.strict_json import MAX_DEPTH

_BATCH_DEPTH: Final = MAX_DEPTH + 2
"""What is accepted alone is accepted in a batch, which wraps it twice."""


class SubmitRoutes:
    def __init__(self, api: Api) -> None:
        self._api = api

    def router(self) -> APIRouter:
        router = APIRouter(tags=["tasks"])
        router.add_api_route(
            "/tasks",
            self.create,
            methods=["POST"],
            summary="Create a task",
            status_code=201,
            response_model=None,
            responses=openapi.answers(s201=("Stored for good; Location shows the task", TaskAnswer)),
            openapi_extra=openapi.body(NewTask, openapi.IDEMPOTENCY_KEY),
        )
        router.add_api_route(
            "/tasks/batch",
            self.create_batch,
            methods=["POST"],
            summary="Create many tasks, all or none",
            status_code=201,
            response_model=None,
            responses=openapi.answers(s201=("All of them are stored for good", BatchAnswer)),
            openapi_extra=openapi.body(NewTasks, openapi.IDEMPOTENCY_KEY),
        )
        return router

    def direct(self) -> Routes:
        return {("POST", "/tasks"): self.create, ("POST", "/tasks/batch"): self.create_batch}

    # Both give the service the deadline and no timeout of asyncio's around it: append and reads keep to the
    # deadline by themselves, and a timeout costs as much as reading the body does.

    async def create(self, request: Request) -> Response:
        api = self._api
        key = idempotency_key(request)
        body, value = await read(request, NewTask, limit=api.settings.max_body_bytes)
        await api.database.ready()
        commands = api.kinds.commands([("", body)], api.clock.now())
        with until(due()):
            created = await api.service.create(commands, origin(request), keyed(key, "create", value))
        task = created.tasks[0]
        headers = {
            "Location": f"{api.query_url}/tasks/{task.id}?min_position={api.token(created.position)}"
        }
        if created.replayed:
            headers["Idempotent-Replayed"] = "true"
        return json_response(api.answer(task, created.position), status=201, headers=headers)

    async def create_batch(self, request: Request) -> Response:
        api = self._api
        key = idempotency_key(request)
        body, value = await read(
            request, NewTasks, limit=api.settings.max_batch_bytes, max_depth=_BATCH_DEPTH
        )
        if len(body.tasks) > api.settings.max_batch_tasks:
            most = f"a batch holds at most {api.settings.max_batch_tasks} tasks"
            raise InvalidCommand("the batch is too long", (Violation("/tasks", most),))
        await api.database.ready()
        places = ((f"/tasks/{n}", task) for n, task in enumerate(body.tasks))
        commands = api.kinds.commands(places, api.clock.now())
        with until(due()):
            created = await api.service.create(commands, origin(request), keyed(key, "batch", value))
        tasks = [
            {"id": t.id, "version": t.version, "status": t.status, "position": api.token(t.position)}
            for t in created.tasks
        ]
        headers = {"Idempotent-Replayed": "true"} if created.replayed else None
        answer = {"tasks": tasks, "position": api.token(created.position)}
        return json_response(answer, status=201, headers=headers)
