"""Positions in the log, and the token a client carries from a write to a read."""

import re
from dataclasses import dataclass

from events.errors import LogRewound, MalformedPosition

_TOKEN = re.compile(r"(0|[1-9][0-9]{0,18})\.([0-9a-z]{8})")


@dataclass(frozen=True, slots=True)
class PositionToken:
    """`<decimal>.<log tag>`. The tag is drawn when a log is made and anew by a restore, so that a
    position of another history is noticed instead of compared."""

    position: int
    tag: str

    def __str__(self) -> str:
        return f"{self.position}.{self.tag}"

    @classmethod
    def parse(cls, text: str) -> "PositionToken":
        """Raises MalformedPosition for whatever str() would not have written."""
        match = _TOKEN.fullmatch(text)
        if match is None or int(match[1]) >= 2**63:
            raise MalformedPosition("a position token reads like 42.k3v9x0aa")
        return cls(int(match[1]), match[2])

    def of_log(self, tag: str) -> int:
        """The position, if it belongs to the log with this tag; raises LogRewound if not."""
        if self.tag != tag:
            raise LogRewound("the position belongs to another log, or to this one before it was restored")
        return self.position
