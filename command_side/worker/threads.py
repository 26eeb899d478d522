"""Runs blocking handlers, one thread an attempt.

Daemon threads and not an executor's: Python waits for an executor's threads before it exits, and a
handler that never returns must not keep a drained worker from being replaced.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_thread(call: Callable[[], T], *, name: str) -> asyncio.Future[T]:
    """The future of `call`, which must not raise. It runs to its end whatever happens to the future."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def run() -> None:
        value = context.run(call)
        # A closed loop: the worker has left already, and with it whoever waited.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, value)

    def settle(value: T) -> None:
        if not answer.done():
            answer.set_result(value)

    threading.Thread(target=run, name=name, daemon=True).start()
    return answer
