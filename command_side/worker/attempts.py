"""The attempts this worker runs: what the event loop, handler threads and the renewal thread share."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, Literal
from uuid import UUID

from events.task_state import TRANSITIONS, TaskState
from taskledger.context import TaskContext
from taskledger.registry import Kind

Stop = Literal["cancelled", "superseded", "handed_back"]
Progress = tuple[float, str | None]


class Attempt:
    """One started task. Made on the event loop."""

    def __init__(self, state: TaskState, kind: Kind) -> None:
        self.state = state
        """As of our TaskStarted: the finish is decided on it without a read."""
        self.kind = kind
        self.number = state.attempt
        self.stopped: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        """Set once, by whoever first wants the handler to end."""
        self.overran = False
        """Whether its time is up."""
        self.told = False
        """Whether a polling handler has seen that it is to end."""
        self.ended = False
        """Whether its outcome is decided. It is still ours until the outcome is in the log."""
        self.lingering: asyncio.Future[Any] | None = None
        """A handler that would not stop: its slot is taken until it returns."""
        self.progress: Progress | None = None
        """The latest, written by the handler from wherever it runs."""
        self.context = TaskContext(
            state.id,
            state.attempt,
            kind=state.kind,
            queue=state.queue,
            tags=state.tags,
            created_at=state.created_at,
            report=self.report,
            cancelled=self._cancelled,
        )

    @property
    def key(self) -> str:
        """What its row among the leases is called, and whoever speaks of it outside."""
        return f"{self.state.id}:{self.number}"

    def stop(self, why: Stop) -> None:
        if not self.stopped.done():
            self.stopped.set_result(why)

    def report(self, fraction: float, note: str | None) -> None:
        self.progress = (fraction, note)

    def _cancelled(self) -> bool:
        asked = self.overran or self.stopped.done()
        self.told = self.told or asked
        return asked


class Attempts:
    """Those that are ours: from TaskStarted until their outcome is in the log. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ours: dict[tuple[int, int], Attempt] = {}

    def add(self, attempt: Attempt) -> None:
        with self._lock:
            self._ours[attempt.state.id.int, attempt.number] = attempt

    def remove(self, attempt: Attempt) -> None:
        with self._lock:
            self._ours.pop((attempt.state.id.int, attempt.number), None)

    def running(self) -> list[Attempt]:
        """Those whose handler has not ended."""
        with self._lock:
            return [attempt for attempt in self._ours.values() if not attempt.ended]

    def holds(self, task_id: UUID, attempt: int) -> bool:
        with self._lock:
            return (task_id.int, attempt) in self._ours

    def __len__(self) -> int:
        return len(self._ours)

    def observe(self, later: Sequence[tuple[str, str]]) -> None:
        """Events that followed an attempt's start: (attempt key, topic). Call on the event loop.

        All but a cancel request mean that somebody else has ended the attempt: the sweeper, or a
        successor. Our own finishing events are appended only after `ended` is set. What a later release
        has appended may mean anything: the handler goes on, and its outcome waits for a verdict.
        """
        if not later:
            return
        by_key = {attempt.key: attempt for attempt in self.running()}
        for key, topic in later:
            attempt = by_key.get(key)
            if attempt is not None and topic in TRANSITIONS:
                attempt.stop("cancelled" if topic == "TaskCancelRequested" else "superseded")
