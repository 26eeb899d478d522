"""Sends tasks to Redis, and reads their results from there."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response
from streaq.constants import REDIS_RESULTS_SET
from task_api import NewTask, created, document
from worker import add, worker


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    async with worker:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/tasks", status_code=201)
async def create(task: NewTask) -> Response:
    return created((await add.enqueue(task.payload.x, task.payload.y)).id)


@app.get("/tasks/{task_id}")
async def read(task_id: str) -> Response:
    stored = await worker.redis.get(worker.results_key + task_id)
    if stored is None:
        return document({"status": "unknown", "result": None})
    result = await worker.deserialize(stored)
    return document({"status": "completed" if result["s"] else "failed", "result": result["r"]})


@app.get("/completed")
async def completed() -> Response:
    """Those that failed would be among them: their results are read as such."""
    return document({"completed": await worker.redis.zcard(worker.prefix + REDIS_RESULTS_SET)})
