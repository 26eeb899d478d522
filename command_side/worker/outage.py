"""Says once that something is missing, and once that it is back."""

from taskledger.telemetry import get_logger

_logger = get_logger(__name__)


class Outage:
    """Safe to use from any thread, by one thread at a time."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.reason: str | None = None
        """Why it cannot be used right now; None while it can."""

    def goes_on(self, reason: str) -> None:
        if self.reason is None:
            _logger.warning("waiting", waits_for=self.what, reason=reason)
        self.reason = reason

    def over(self) -> None:
        if self.reason is not None:
            _logger.info("back", after=self.reason, what=self.what)
        self.reason = None
