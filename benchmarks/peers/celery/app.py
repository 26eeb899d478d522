"""Sends tasks to Redis, and reads what they wrote into PostgreSQL."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg
import orjson
from fastapi import FastAPI, Request, Response
from task_api import NewTask, created, document
from worker import add, celery


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    with celery.producer_pool.acquire(block=True) as producer:
        async with asyncpg.create_pool(os.environ["DSN"], min_size=4, max_size=8) as pool:
            app.state.producer, app.state.pool = producer, pool
            yield


app = FastAPI(lifespan=lifespan)


@app.post("/tasks", status_code=201)
async def create(task: NewTask, request: Request) -> Response:
    """Celery blocks while it sends, but for less time than handing it to a thread would cost."""
    sent = add.apply_async((task.payload.x, task.payload.y), producer=request.app.state.producer)
    return created(sent.id)


@app.get("/tasks/{task_id}")
async def read(task_id: str, request: Request) -> Response:
    result = await request.app.state.pool.fetchval("SELECT result FROM results WHERE id = $1", task_id)
    if result is None:
        return document({"status": "unknown", "result": None})
    return document({"status": "completed", "result": orjson.loads(result)})


@app.get("/completed")
async def completed(request: Request) -> Response:
    return document({"completed": await request.app.state.pool.fetchval("SELECT count(*) FROM results")})
