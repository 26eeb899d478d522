"""Notices that the log was restored to an older state, or replaced by a copy that lacks its end.

Nothing in the restored database tells of what was lost with it. So every process remembers the last event
it has seen: a log that ends before it, or holds another event there, under the same tag, is not the log
that this process worked on. To go on would hand out positions for the second time. Until somebody draws a
new tag (`taskledger restored`) such a log is refused, however far it may grow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from events.errors import LogRewound

LOOK: Final = """
select i.tag, coalesce(h.notification_id, 0) as head, h.recorded_at as head_at, m.recorded_at as seen_at
from taskledger.log_identity i
left join lateral (
    select notification_id, recorded_at from taskledger.task_events order by notification_id desc limit 1
) h on true
left join taskledger.task_events m on m.notification_id = %(seen)s::bigint
"""
"""With the parameters of a mark; the answer is for check()."""

WAY_OUT: Final = "run `taskledger restored` once the right one is in place"


@dataclass(frozen=True, slots=True)
class Mark:
    """What has been seen before one asks: whatever answers later must still have it."""

    tag: str
    position: int
    at: datetime | None

    @property
    def parameters(self) -> dict[str, int]:
        return {"seen": self.position}


class Witness:
    """Of one process, or of a part of it. Not for several threads at once."""

    def __init__(self) -> None:
        self._mark = Mark("", 0, None)
        self._condemned: str | None = None

    def mark(self) -> Mark:
        return self._mark

    def check(self, row: Sequence[Any], mark: Mark) -> str:
        """The log's tag, by the answer to LOOK with this mark. Raises LogRewound."""
        tag, head, head_at, at = row
        if tag != self._mark.tag:
            self._mark, self._condemned = Mark(str(tag), 0, None), None
        elif tag == mark.tag and head < mark.position:
            self.condemn(f"the log ends at {head}, and its event {mark.position} has been seen before")
        elif tag == mark.tag and at != mark.at:
            self.condemn(f"the log's event {mark.position} is not the one that was seen before")
        if self._condemned is not None:
            raise LogRewound(f"{self._condemned}: it was restored; {WAY_OUT}")
        self.saw(int(head), head_at)
        return self._mark.tag

    def saw(self, position: int, at: datetime | None) -> None:
        """An event that we have stored or read."""
        if position > self._mark.position:
            self._mark = Mark(self._mark.tag, position, at)

    def condemn(self, why: str) -> None:
        """Somebody else knows it: the log with the present tag is not to be followed."""
        if self._condemned is None:
            self._condemned = why
