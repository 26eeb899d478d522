"""A row and a message for each task; reads rows."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from database import tasks
from fastapi import FastAPI, HTTPException, Response
from sqlalchemy import func, insert, select
from task_api import NewTask, created, document
from worker import add, broker, engine


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    await broker.startup()
    yield
    await broker.shutdown()
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/tasks", status_code=201)
async def create(task: NewTask) -> Response:
    payload = task.payload.model_dump()
    row = insert(tasks).values(kind=task.kind, status="created", payload=payload).returning(tasks.c.id)
    async with engine.connect() as connection:
        task_id: int = (await connection.execute(row)).scalar_one()
    await add.kiq(task_id, payload)
    return created(str(task_id))


@app.get("/tasks/{task_id}")
async def read(task_id: int) -> Response:
    async with engine.connect() as connection:
        found = await connection.execute(
            select(tasks.c.status, tasks.c.result).where(tasks.c.id == task_id)
        )
        row = found.one_or_none()
    if row is None:
        raise HTTPException(404)
    return document({"status": row.status, "result": row.result})


@app.get("/completed")
async def completed() -> Response:
    counted = select(func.count()).select_from(tasks).where(tasks.c.status == "completed")
    async with engine.connect() as connection:
        return document({"completed": (await connection.execute(counted)).scalar_one()})
