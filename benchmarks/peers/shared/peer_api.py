"""The HTTP API that each PostgreSQL peer gets, around its own way to keep and read tasks."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

RESULTS = "CREATE TABLE results (id bigint PRIMARY KEY, sum bigint NOT NULL)"
"""Where handlers of a peer that stores no results put them, before it marks the task as done."""


class Payload(BaseModel):
    x: int
    y: int


class NewTask(BaseModel):
    kind: str
    payload: Payload


class Tasks(Protocol):
    async def submit(self, task: NewTask) -> str: ...

    async def result(self, task_id: str) -> dict[str, Any] | None:
        """None until it is stored for good."""
        ...

    async def completed(self) -> int: ...


def make_app(open_tasks: Callable[[], AbstractAsyncContextManager[Tasks]]) -> FastAPI:
    tasks: Tasks

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal tasks
        async with open_tasks() as tasks:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/tasks", status_code=201)
    async def create(task: NewTask) -> dict[str, str]:
        if task.kind != "sum":
            raise HTTPException(422, "no such kind")
        return {"id": await tasks.submit(task), "position": "0"}

    @app.get("/tasks/{task_id}")
    async def read(task_id: str) -> dict[str, Any]:
        result = await tasks.result(task_id)
        return {"status": "pending" if result is None else "completed", "result": result}

    @app.get("/completed")
    async def completed() -> dict[str, int]:
        return {"completed": await tasks.completed()}

    return app
