"""The database's clock as a process knows it: no decision about due times trusts the local one."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

KEPT_SECONDS: Final = 30.0
"""How long the best observation counts. A database whose clock was set back is believed after that."""


class DatabaseClock:
    """Runs on the local monotonic clock from a time that the database has told.

    An observation is late by at most the reply's way back, so now() lags by that much and never leads:
    a schedule may be honoured a moment late, never early. Steps of the local wall clock do not matter.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen: datetime | None = None
        self._at = 0.0

    def observe(self, database_time: datetime) -> None:
        """A time the database has just told. Of those heard lately the one that came fastest counts."""
        at = self._monotonic()
        if (
            self._seen is None
            or at - self._at > KEPT_SECONDS
            or database_time > self._after(self._seen, at)
        ):
            self._seen, self._at = database_time, at

    @property
    def known(self) -> bool:
        return self._seen is not None

    def now(self) -> datetime:
        """Raises RuntimeError before the first observation: a process reads the clock once at start."""
        if self._seen is None:
            raise RuntimeError("the database's clock has not been read yet")
        return self._after(self._seen, self._monotonic())

    def _after(self, seen: datetime, at: float) -> datetime:
        return seen + timedelta(seconds=at - self._at)
