"""Sends tasks to Redis, and reads their results from there."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from dramatiq import Message
from fastapi import FastAPI, Request, Response
from redis.asyncio import Redis
from sending import push
from task_api import NewTask, created, document
from worker import COMPLETED, add, backend


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with Redis.from_url(os.environ["REDIS_URL"]) as redis:
        app.state.redis = redis
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/tasks", status_code=201)
async def create(task: NewTask, request: Request) -> Response:
    message = add.message(task.payload.x, task.payload.y)
    async with request.app.state.redis.pipeline() as pipeline:
        push(pipeline, message)
        await pipeline.execute()
    return created(message.message_id)


@app.get("/tasks/{task_id}")
async def read(task_id: str, request: Request) -> Response:
    message = Message(add.queue_name, add.actor_name, (), {}, {}, message_id=task_id)
    stored = await request.app.state.redis.lindex(backend.build_message_key(message), 0)
    if stored is None:
        return document({"status": "unknown", "result": None})
    return document(
        {"status": "completed", "result": backend.unwrap_result(backend.encoder.decode(stored))}
    )


@app.get("/completed")
async def completed(request: Request) -> Response:
    return document({"completed": int(await request.app.state.redis.get(COMPLETED) or 0)})
