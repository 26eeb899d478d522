"""Accepts what `POST /tasks` accepts, and does nothing with it."""

from fastapi import FastAPI

from command_side.api.schemas import NewTask

app = FastAPI()


@app.post("/tasks", status_code=201)
async def create(task: NewTask) -> dict[str, str]:  # noqa: ARG001  read and checked, no more
    return {"id": "0"}
