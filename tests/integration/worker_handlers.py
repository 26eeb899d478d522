"""Kinds that misbehave in the ways a worker must bear."""

import asyncio
import os
import signal
import threading
import time
from typing import Any

from pydantic import BaseModel

from taskledger import Discard, RetryLater, TaskContext, task

TICK = 0.01


class Empty(BaseModel):
    pass


@task("echo")
async def echo(payload: Any) -> Any:
    return payload


@task("add_in_thread")
def add_in_thread(payload: list[int]) -> int:
    return sum(payload)


@task("who_thread")
def who_thread(payload: Empty) -> str:
    return threading.current_thread().name


@task("wait_async", timeout_seconds=60)
async def wait_async(payload: Empty) -> None:
    await asyncio.Event().wait()


@task("wait_thread", timeout_seconds=60)
def wait_thread(payload: Empty, ctx: TaskContext) -> str:
    """Gives up when it is told to."""
    while not ctx.cancel_requested:
        time.sleep(TICK)
    return "told"


@task("deaf_thread", timeout_seconds=60)
def deaf_thread(payload: str) -> str:
    """Runs until the file appears, whatever it is told."""
    while not os.path.exists(payload):  # noqa: PTH110
        time.sleep(TICK)
    return "done"


@task("wait_process", execution="process", timeout_seconds=60)
def wait_process(payload: str) -> None:
    """Leaves its process id in the file."""
    with open(payload, "a") as file:  # noqa: PTH123
        file.write(f"{os.getpid()}\n")
    while True:
        time.sleep(TICK)


@task("pid", execution="process")
async def pid(payload: Empty, ctx: TaskContext) -> list[int]:
    return [os.getpid(), os.getppid(), ctx.attempt]


@task("die_in_process", execution="process")
def die_in_process(payload: Empty) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@task("die_when_isolated")
async def die_when_isolated(payload: int) -> int:
    """Dies, but not in the process of the given id."""
    if os.getpid() != payload:
        os.kill(os.getpid(), signal.SIGKILL)
    return payload


@task("own_pid")
async def own_pid(payload: Empty) -> int:
    return os.getpid()


@task("later")
async def later(payload: Empty, ctx: TaskContext) -> int:
    if ctx.attempt == 1:
        raise RetryLater(0.01)
    return ctx.attempt


@task("never")
async def never(payload: Empty) -> None:
    raise Discard("no use")


@task("exit")
async def exit_(payload: Empty) -> None:
    raise SystemExit(3)


@task("broken")
def broken(payload: Empty) -> None:
    raise ValueError("bad \x00 and \ud800")


@task("nan")
async def nan(payload: Empty) -> Any:
    return {"value": [1.0, float("nan")]}


UNSTORABLE = {
    "NaN": {"value": float("nan")},
    "NUL": "a\x00b",
    "surrogate": ["\ud800"],
    "too large": "x" * 2_000_000,
    "not JSON": object(),
    "too deep": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],
    "too large a number": 2**60,
}


@task("unstorable")
async def unstorable(payload: str) -> Any:
    return UNSTORABLE[payload]


@task("unstorable_process", execution="process")
def unstorable_process(payload: str) -> Any:
    return UNSTORABLE[payload]


@task("halfway", timeout_seconds=60)
async def halfway(payload: Empty, ctx: TaskContext) -> None:
    ctx.progress(0.5, "half")
    await asyncio.Event().wait()


@task("halfway_process", execution="process", timeout_seconds=60)
def halfway_process(payload: Empty, ctx: TaskContext) -> None:
    ctx.progress(0.25, "a quarter")
    while True:
        time.sleep(TICK)


@task("stubborn", timeout_seconds=60)
async def stubborn(payload: str) -> None:
    """Swallows cancellations until the file appears."""
    while not os.path.exists(payload):  # noqa: PTH110, ASYNC240
        try:
            await asyncio.sleep(TICK)
        except asyncio.CancelledError:
            continue


@task("block")
async def block(payload: float) -> None:
    """What no async handler should do."""
    time.sleep(payload)  # noqa: ASYNC251


@task("noted")
def noted(payload: dict[str, str], ctx: TaskContext) -> None:
    """Says its note until the file appears."""
    while not os.path.exists(payload["until"]):  # noqa: PTH110
        ctx.progress(0.5, payload["note"])
        time.sleep(TICK)
