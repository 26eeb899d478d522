"""One attempt in a process of its own, forked from the zygote."""

import ctypes
import os
import signal
import socket
import sys
import traceback
from datetime import datetime
from typing import Any, Final, NoReturn
from uuid import UUID

from command_side.worker.perform import perform_blocking
from command_side.worker.wire import Channel, outcome_message
from taskledger.context import TaskContext
from taskledger.registry import Registry

_PR_SET_PDEATHSIG: Final = 1
_FAILED: Final = 70
"""EX_SOFTWARE: the child could not even answer."""
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None
"""Loaded before any fork, which may then do nothing but system calls."""


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when `parent`, which started it, has ended. Only Linux can do it."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(_FAILED)


def job_of(kind: str, payload: Any, context: TaskContext) -> dict[str, Any]:
    """What the child is sent."""
    created_at = context.created_at
    return {
        "kind": kind,
        "payload": payload,
        "task_id": str(context.task_id),
        "attempt": context.attempt,
        "queue": context.queue,
        "tags": list(context.tags),
        "created_at": None if created_at is None else created_at.isoformat(),
    }


def serve(connection: socket.socket, registry: Registry, parent: int) -> NoReturn:
    """Receives one job, runs it, answers and ends. Runs in the child and never returns."""
    status = _FAILED
    try:
        os.setpgid(0, 0)
        die_with_parent(parent)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _run(Channel(connection), registry)
        status = 0
    except BaseException:  # noqa: BLE001  nothing may leave: the zygote's stack lies below
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(channel: Channel, registry: Registry) -> None:
    job = channel.receive()
    created_at = job["created_at"]
    context = TaskContext(
        UUID(job["task_id"]),
        job["attempt"],
        kind=job["kind"],
        queue=job["queue"],
        tags=tuple(job["tags"]),
        created_at=None if created_at is None else datetime.fromisoformat(created_at),
        report=lambda fraction, note: channel.send({"progress": [fraction, note]}),
    )
    outcome = perform_blocking(registry.kinds[job["kind"]], job["payload"], context)
    channel.send(outcome_message(outcome))
