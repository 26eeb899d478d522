"""The database's clock as a process knows it: no decision about due times trusts the local one."""

import time
from datetime import datetime, timedelta


class DatabaseClock:
    """Runs on the local monotonic clock from the last database time seen.

    An observation is late by at most the reply's way back, so now() lags by that much and never leads:
    a schedule may be honoured a moment late, never early. Steps of the local wall clock do not matter.
    """

    def __init__(self) -> None:
        self._seen: datetime | None = None
        self._at = 0.0

    def observe(self, database_time: datetime) -> None:
        """A time the database has just told. One older than what is known already is ignored."""
        at = time.monotonic()
        if self._seen is None or database_time > self._now(self._seen, at):
            self._seen, self._at = database_time, at

    @property
    def known(self) -> bool:
        return self._seen is not None

    def now(self) -> datetime:
        """Raises RuntimeError before the first observation: a process reads the clock once at start."""
        if self._seen is None:
            raise RuntimeError("the database's clock has not been read yet")
        return self._now(self._seen, time.monotonic())

    def _now(self, seen: datetime, at: float) -> datetime:
        return seen + timedelta(seconds=at - self._at)
