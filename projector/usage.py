"""What a day's tasks cost, by tag: a second projection beside the read tables.

A task with several tags counts for each of them, one without any under the empty tag. Failed attempts do
not say how long they took: `microseconds` are those of attempts that completed.
"""

from collections.abc import Iterator
from datetime import UTC, date
from typing import Final

from events.task_events import TaskCompleted, TaskStarted
from projector.tally import Fact, Tally

_Key = tuple[str, date, str]
_Amounts = tuple[int, int, int]


def _amounts(fact: Fact) -> Iterator[tuple[_Key, _Amounts]]:
    match fact.event:
        case TaskStarted():
            amounts = (0, 1, 0)
        case TaskCompleted(duration=duration):
            amounts = (1, 0, round(1_000_000 * (duration or 0.0)))
        case _:
            return
    for tag in fact.task.tags or ("",):
        yield (fact.task.tenant, fact.at.astimezone(UTC).date(), tag), amounts


USAGE: Final = Tally(
    name="usage",
    keys={"tenant": "text", "day": "date", "tag": "text"},
    sums=("completed", "attempts", "microseconds"),
    amounts=_amounts,
)
