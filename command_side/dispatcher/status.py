"""What the dispatcher says of itself, and how it says that something is away: one line an outage."""

import random
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from taskledger.telemetry import get_logger

_LONGEST_PAUSE_SECONDS: Final = 2.0

_logger = get_logger(__name__)


@dataclass(slots=True)
class DispatcherStatus:
    """Kept by the dispatcher, read by health and metrics. Counters run from the start of the process."""

    leader: bool = False
    waiting_for: dict[str, str] = field(default_factory=dict[str, str])
    """What is missing (`postgres`, `redis`, `log`) and why. A standby misses nothing."""
    checkpoint: int = 0
    """Position up to which the log is folded."""
    published: int = 0
    """Stream entries that were added; those already there do not count."""
    refused: int = 0
    """How often Redis held another position than we believed, and nothing was published."""
    poison: int = 0
    """Events and tasks that mean nothing to this release and were passed over."""
    queued_again: int = 0
    lost: int = 0
    timed_out: int = 0
    replaced: int = 0

    @property
    def ready(self) -> bool:
        return not self.waiting_for

    def missing(self) -> list[str]:
        return [f"{what}: {why}" for what, why in list(self.waiting_for.items())]

    def snapshot(self) -> dict[str, Any]:
        return {"ready": self.ready, **asdict(self)}


class Outage:
    """Something the process needs is away. `what` is its name in the status."""

    def __init__(self, what: str, status: DispatcherStatus) -> None:
        self._what = what
        self._status = status
        self._pause = 0.0

    @property
    def on(self) -> bool:
        return self._pause > 0

    def goes_on(self, reason: str) -> float:
        """Says so, the first time; returns how many seconds to wait before the next try: more each
        time, with jitter, so that what comes back is not met by everybody at once."""
        if self._what not in self._status.waiting_for:
            _logger.warning("waiting", what=self._what, reason=reason)
        self._status.waiting_for[self._what] = reason
        self._pause = min(max(0.2, 2 * self._pause), _LONGEST_PAUSE_SECONDS)
        return self._pause * random.uniform(0.5, 1.0)  # noqa: S311  jitter

    def is_over(self) -> None:
        if self._status.waiting_for.pop(self._what, None) is not None:
            _logger.info("no longer waiting", what=self._what)
        self._pause = 0.0
