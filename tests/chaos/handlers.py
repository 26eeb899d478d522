"""Kinds that run under chaos. Each execution leaves its effect in the file that CHAOS_EFFECTS names.

The file stands for a fenced resource outside the service: it takes an effect only if no higher attempt
of the task came before it. Appending a line is one system call, so that the order is the resource's own
and a process that is frozen or killed at any instant holds up nobody.
"""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from events.task_events import RetryPolicy
from taskledger import TaskContext, task
from tests.chaos.evidence import Effect

EFFECTS: Final = "CHAOS_EFFECTS"
"""Environment variable with the file's path. Without it nothing is written."""
SOON: Final = RetryPolicy(base_seconds=0.1, cap_seconds=0.5)

Seconds = Annotated[float, Field(ge=0, le=600)]


class Mark(BaseModel):
    mark: str


class Slow(Mark):
    seconds: Seconds = 0.3


class Flaky(Mark):
    failures: int = 1


class Poison(Mark):
    kills: int = 1_000
    """Attempts after this many are harmless."""


class Done(BaseModel):
    mark: str
    attempt: int


@task("mark", retry=SOON)
async def mark(payload: Mark, ctx: TaskContext) -> Done:
    return _done(payload, ctx)


@task("slow", retry=SOON, timeout_seconds=600)
async def slow(payload: Slow, ctx: TaskContext) -> Done:
    """Its effect comes last, as that of a worker that was given up would."""
    await asyncio.sleep(payload.seconds)
    return _done(payload, ctx)


@task("flaky", retry=SOON, max_attempts=20)
async def flaky(payload: Flaky, ctx: TaskContext) -> Done:
    done = _done(payload, ctx)
    if ctx.attempt <= payload.failures:
        raise RuntimeError(f"attempt {ctx.attempt} of {payload.failures} that fail")
    return done


@task("poison", retry=SOON, max_attempts=3)
async def poison(payload: Poison, ctx: TaskContext) -> Done:
    """Kills the process it runs in: the worker at first; after that loss, a child of its own."""
    done = _done(payload, ctx)
    if ctx.attempt <= payload.kills:
        os.kill(os.getpid(), signal.SIGKILL)
    return done


@task("blocking", retry=SOON, timeout_seconds=600)
def blocking(payload: Slow, ctx: TaskContext) -> Done:
    """In a thread."""
    time.sleep(payload.seconds)
    return _done(payload, ctx)


@task("stalling", retry=SOON, timeout_seconds=600)
async def stalling(payload: Slow, ctx: TaskContext) -> Done:
    """Blocks its worker's event loop, which no handler should."""
    time.sleep(payload.seconds)  # noqa: ASYNC251  the fault itself
    return _done(payload, ctx)


@task("cpu", retry=SOON, timeout_seconds=600, execution="process")
def cpu(payload: Slow, ctx: TaskContext) -> Done:
    until = time.monotonic() + payload.seconds
    while time.monotonic() < until:
        pass
    return _done(payload, ctx)


def record(path: Path, task_id: str, attempt: int) -> None:
    """One execution has its effect. For HTTP workers of the harness, too."""
    line = json.dumps({"task": task_id, "attempt": attempt}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def effects(path: Path) -> list[Effect]:
    """Every execution, in the order in which the resource met them."""
    if not path.exists():
        return []
    highest: dict[str, int] = {}
    found: list[Effect] = []
    for seq, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        execution: dict[str, Any] = json.loads(line)
        task_id, attempt = str(execution["task"]), int(execution["attempt"])
        accepted = attempt >= highest.get(task_id, 0)
        highest[task_id] = max(attempt, highest.get(task_id, 0))
        found.append(Effect(seq, task_id, attempt, accepted))
    return found


def _done(payload: Mark, ctx: TaskContext) -> Done:
    if (path := os.environ.get(EFFECTS)) is not None:
        record(Path(path), str(ctx.task_id), ctx.attempt)
    return Done(mark=payload.mark, attempt=ctx.attempt)
