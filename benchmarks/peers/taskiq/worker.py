"""The broker and its one task: what a plain service does, a transaction a step."""

import os
from typing import Any

from database import make_engine, tasks
from sqlalchemy import select, update
from taskiq import TaskiqEvents, TaskiqState
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(
    os.environ["REDIS_URL"], consumer_id="0", xread_count=int(os.environ["XREAD_COUNT"])
).with_serializer(ORJSONSerializer())
engine = make_engine()


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def close(_: TaskiqState) -> None:
    await engine.dispose()


@broker.task("sum")
async def add(task_id: int, payload: dict[str, Any]) -> None:  # noqa: ARG001  the row tells
    this = tasks.c.id == task_id
    async with engine.connect() as connection:
        numbers = (await connection.execute(select(tasks.c.payload).where(this))).scalar_one()
    async with engine.connect() as connection:
        await connection.execute(update(tasks).where(this).values(status="running"))
    result = {"sum": numbers["x"] + numbers["y"]}
    async with engine.connect() as connection:
        await connection.execute(update(tasks).where(this).values(status="completed", result=result))
