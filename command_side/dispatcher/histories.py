"""Tasks that table `outstanding` holds nothing of, or could not read: as the log itself has them."""

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from command_side.dispatcher.outstanding import Changes, Row, recall
from events.codec import EventMapper
from events.log import LogReader
from events.task_state import SETTLED

RECALL_CHUNK: Final = 50
"""Tasks whose whole history, payload included, is in memory at once."""


class Histories:
    def __init__(self, log: LogReader, mapper: EventMapper) -> None:
        self._log = log
        self._mapper = mapper

    async def recall(self, tasks: Sequence[UUID], upto: int) -> dict[UUID, Row]:
        """As they were at position `upto`."""
        recalled: dict[UUID, Row] = {}
        for start in range(0, len(tasks), RECALL_CHUNK):
            histories = await self._log.read_streams(tasks[start : start + RECALL_CHUNK])
            for task, history in histories.items():
                row = recall(history, upto, self._mapper.decode)
                if row is not None:
                    recalled[task] = row
        return recalled


def readable(recalled: Mapping[UUID, Row]) -> Changes:
    """What the table holds of them from now on, where this release understands them."""
    changes = Changes()
    for task, row in recalled.items():
        if not row.unreadable:
            if row.state in SETTLED:
                changes.gone.append(task)
            else:
                changes.put.append(row)
    return changes
