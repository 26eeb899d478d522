"""One step of the sealer: the events that have come become leaves of the tree, and the tree gets a head."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

from events.errors import LogRewound
from events.heads import Head, Signer, note_of
from events.merkle import Span, TileId, edge_of, grow, root_of
from events.tracking import advance, checkpoint
from projector.tree import CHECKPOINT, read_leaves, read_tiles, write_tiles

BATCH_EVENTS: Final = 16_384
BATCH_BYTES: Final = 16 * 1024 * 1024
"""Of event state, which passes through row by row and is not kept."""

_LAST: Final = (
    "select recorded_at, clock_timestamp() from taskledger.task_events where notification_id = %s"
)
_HEAD: Final = """
insert into taskledger_proof.heads (hour, size, note) values (date_trunc('hour', %s::timestamptz), %s, %s)
on conflict (hour) do update set size = excluded.size, note = excluded.note
"""


class TreeBuilder:
    """Follows the log on the session it is given, whose errors it raises. Keeps the tree's right edge in
    memory; whoever else moves the checkpoint makes the next step raise CheckpointConflict, and nothing of
    that step is stored."""

    def __init__(self, connection: Connection[TupleRow], signer: Signer | None = None) -> None:
        self._connection = connection
        self._signer = signer
        self.size = checkpoint(connection, CHECKPOINT)
        wanted = edge_of(self.size)
        self._edge: Mapping[TileId, bytes] = read_tiles(connection, wanted)
        if self._edge.keys() != set(wanted):
            raise LogRewound("the tree over the log lacks tiles: run `taskledger verify`")
        self.at: datetime | None = None
        """`recorded_at` of the last event, once a step has moved it."""

    def step(self, tag: str, head: int) -> int:
        """Seals the next events up to position `head` of the log with this tag; how many, at most
        BATCH_EVENTS. One transaction: a crash leaves the tree as it was or as it is to be. Raises
        LogRewound where the log does not go on as it should."""
        upto = min(head, self.size + BATCH_EVENTS)
        if upto <= self.size:
            return 0
        leaves: list[bytes] = []
        found = self.size
        for position, leaf in read_leaves(self._connection, self.size, upto, size=BATCH_BYTES):
            found = max(found, position)
            if position == self.size + len(leaves) + 1:
                leaves.append(leaf)
        if not leaves:
            raise LogRewound(
                f"the log has no event {self.size + 1} before {found}: run `taskledger verify`"
            )
        self._store(tag, self.size + len(leaves), b"".join(leaves))
        return len(leaves)

    def _store(self, tag: str, size: int, leaves: bytes) -> None:
        changed = grow(self.size, self._edge, leaves)
        known = {**self._edge, **changed}
        edge = {tile: known[tile] for tile in edge_of(size)}
        row = self._connection.execute(_LAST, (size,)).fetchone()
        if row is None:
            raise LogRewound(f"position {size} is gone from the log")
        at, now = row
        note = note_of(Head(tag, size, root_of(Span(0, size), edge), now), self._signer)
        with self._connection.transaction():
            advance(self._connection, CHECKPOINT, self.size, size, at=at)
            write_tiles(self._connection, changed)
            self._connection.execute(_HEAD, (at, size, note))
        self.size, self._edge, self.at = size, edge, at
