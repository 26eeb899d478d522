"""When a holder is dead. Pure: times are given, in seconds of a monotonic clock.

A worker raises its lease's counter; nobody compares clocks. A holder is dead once the sweeper itself has
seen the counter unchanged (or the lease missing) for the lease's length, over looks that all succeeded
and followed each other closely. After a failed or late look the holders may simply have been unable to
renew, as the sweeper was unable to look: then the wait begins anew. So a pause of PostgreSQL, a frozen
dispatcher or a step of a wall clock takes nothing away from anybody.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Beat:
    """A lease as it was seen."""

    counter: int
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class _Watched:
    counter: int | None
    lease_seconds: float
    since: float


class HolderWatch:
    """`interval_seconds` is how often observe() is meant to be called; a gap of more than twice that,
    and of more than a third of a holder's lease, is a late look for that holder."""

    def __init__(self, default_lease_seconds: float, interval_seconds: float) -> None:
        self._default = default_lease_seconds
        self._gap = 2 * interval_seconds
        self._watched: dict[str, _Watched] = {}
        self._last: float | None = None

    def restart(self) -> None:
        """A look failed: what was seen before it proves nothing any more."""
        self._watched.clear()
        self._last = None

    def observe(self, started: float, ended: float, holders: Mapping[str, Beat | None]) -> set[str]:
        """The dead ones among `holders`: all that matter now, each with its lease, read from the database
        at some moment between `started` and `ended`."""
        gap = 0.0 if self._last is None else ended - self._last
        self._last = ended
        dead: set[str] = set()
        watched: dict[str, _Watched] = {}
        for holder, beat in holders.items():
            now = self._now(self._watched.get(holder), beat, ended)
            if gap > max(self._gap, now.lease_seconds / 3):
                now = replace(now, since=ended)
            watched[holder] = now
            # From the end of the first look to the start of this one it certainly did not change.
            if started - now.since >= now.lease_seconds:
                dead.add(holder)
        self._watched = watched
        return dead

    def _now(self, before: _Watched | None, beat: Beat | None, ended: float) -> _Watched:
        if beat is not None:
            if before is not None and before.counter == beat.counter:
                return replace(before, lease_seconds=beat.lease_seconds)
            return _Watched(beat.counter, beat.lease_seconds, ended)
        if before is None:
            return _Watched(None, self._default, ended)
        if before.counter is None:
            return before
        # The lease is gone (leases do not survive a crash of the server): as long again as it was good for.
        return _Watched(None, max(before.lease_seconds, self._default), ended)
