"""What a handler is given beside its payload, and the two exceptions it steers with."""

import math
from collections.abc import Callable
from datetime import datetime
from typing import Final
from uuid import UUID

MAX_RETRY_SECONDS: Final = 10 * 366 * 86400.0
"""As far ahead as `run_at` may lie."""
MAX_NOTE_CHARACTERS: Final = 500

Report = Callable[[float, str | None], None]


class RetryLater(Exception):  # noqa: N818  an instruction to the worker, not an error
    """Raised by a handler: run the task again in `seconds`. The attempt does not count as a failure."""

    def __init__(self, seconds: float, reason: str = "") -> None:
        """Raises ValueError for a wait that is negative, not finite or beyond ten years."""
        if not 0 <= seconds <= MAX_RETRY_SECONDS:
            raise ValueError(f"RetryLater takes 0 to {MAX_RETRY_SECONDS:.0f} seconds")
        super().__init__(reason or f"asked to be retried in {seconds:g} s")
        self.seconds = float(seconds)


class Discard(Exception):  # noqa: N818  an instruction to the worker, not an error
    """Raised by a handler: the task can never succeed. It is dead at once, whatever attempts are left."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TaskContext:
    """Which attempt this is, and the handler's line to its worker. Safe to use from any thread.

    (task_id, attempt) is the fencing token for effects outside: an attempt never runs twice, and a
    later attempt has a higher number. In a test, make one by hand: `TaskContext(task_id, attempt=1)`.
    """

    def __init__(
        self,
        task_id: UUID,
        attempt: int,
        *,
        kind: str = "",
        queue: str = "default",
        tags: tuple[str, ...] = (),
        created_at: datetime | None = None,
        report: Report | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.task_id = task_id
        self.attempt = attempt
        """1 for the first; counts every start over the task's whole life."""
        self.kind = kind
        self.queue = queue
        self.tags = tags
        self.created_at = created_at
        self._report = report
        self._cancelled = cancelled

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Tells how far the attempt is, 0 to 1. Cheap: kept here and stored with the next renewal of
        the lease, about once a second; only the last call of that second is seen by anybody.

        Raises ValueError for a fraction outside 0 to 1. The note is cut after 500 characters.
        """
        if not math.isfinite(fraction) or not 0 <= fraction <= 1:
            raise ValueError("progress is a fraction from 0 to 1")
        if self._report is not None:
            self._report(float(fraction), None if note is None else storable(note, MAX_NOTE_CHARACTERS))

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked to cancel the task, or the attempt is not the running one any more.

        Async handlers are cancelled by asyncio and process handlers killed; a handler in a thread
        cannot be stopped from outside, so a long one asks here and returns early.
        """
        return self._cancelled is not None and self._cancelled()


def storable(text: str, limit: int) -> str:
    """The text as JSON and PostgreSQL can hold it: without NUL and lone surrogates, cut at `limit`."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return cut.replace("\x00", "�").encode("utf-8", "replace").decode("utf-8")
