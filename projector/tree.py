"""The stored tree over the log: leaves as they are read, tiles and heads as they are kept."""

import hashlib
from collections.abc import Collection, Generator, Mapping
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

from events.binary_arrays import array
from events.leaf import COLUMNS, leaf_of_copy
from events.merkle import TileId

CHECKPOINT: Final = "sealed"
"""Of the tree: how many events it has."""

_LEAVES: Final = f"""
copy (
    select {COLUMNS} from (
        select n.*, sum(octet_length(state)) over (order by notification_id) - octet_length(state) as before
        from (
            select {COLUMNS} from taskledger.task_events
            where notification_id > %s and notification_id <= %s order by notification_id
        ) n
    ) s where before < %s order by notification_id
) to stdout (format binary)
"""
_TILES: Final = """
select level, number, hashes from taskledger_proof.tiles
where (level, number) in (select * from unnest(%b::int4[], %b::int8[]))
"""
_WRITE: Final = """
insert into taskledger_proof.tiles (level, number, hashes)
select * from unnest(%b::int4[], %b::int8[], %b::bytea[])
on conflict (level, number) do update set hashes = excluded.hashes
"""

UNBOUNDED: Final = 2**62


def read_leaves(
    connection: Connection[TupleRow], after: int, upto: int, *, size: int = UNBOUNDED
) -> Generator[tuple[int, bytes]]:
    """Position and hash of each event above position `after`, not beyond `upto`; ends early once their
    states have more than `size` bytes. To be read to its end."""
    sha256 = hashlib.sha256
    with connection.cursor().copy(_LEAVES.encode(), (after, upto, size)) as rows:
        for row in rows:
            read = leaf_of_copy(bytes(row))
            if read is not None:
                yield read[0], sha256(b"\0" + read[1]).digest()


def read_tiles(connection: Connection[TupleRow], wanted: Collection[TileId]) -> dict[TileId, bytes]:
    """Those of them that there are."""
    if not wanted:
        return {}
    bounds = (array("int4", [t.level for t in wanted]), array("int8", [t.number for t in wanted]))
    rows = connection.cursor(binary=True).execute(_TILES.encode(), bounds)
    return {TileId(level, number): bytes(hashes) for level, number, hashes in rows}


def write_tiles(connection: Connection[TupleRow], tiles: Mapping[TileId, bytes]) -> None:
    columns = (
        array("int4", [tile.level for tile in tiles]),
        array("int8", [tile.number for tile in tiles]),
        array("bytea", list(tiles.values())),
    )
    connection.execute(_WRITE.encode(), columns)
