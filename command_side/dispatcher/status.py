"""What the dispatcher says of itself."""

from dataclasses import asdict, dataclass, field
from typing import Any


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
