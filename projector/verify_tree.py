"""Whether the log is still what was sealed: its events against the tree, the tree against itself, its heads
against both, and a head that was kept elsewhere against all of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

from events.errors import MalformedHead
from events.heads import Note, PublicKey
from events.merkle import HASH_BYTES, TILE_WIDTH, Span, TileId, complete_root, root_of, split, tiles_needed
from events.tracking import checkpoint
from projector.tree import CHECKPOINT, read_leaves, read_tiles

_PART: Final = 64 * TILE_WIDTH
"""Leaves looked at together."""
_TILE_BYTES: Final = TILE_WIDTH * HASH_BYTES
_ABSENT: Final = bytes(HASH_BYTES)

_HEADS: Final = "select size, note from taskledger_proof.heads order by size"
_STRAY: Final = """
select level, number from taskledger_proof.tiles t
where t.number > (%(size)s::bigint - 1) >> (8 * (t.level + 1)) or %(size)s::bigint >> (8 * t.level) = 0
order by level, number
"""

Tell = Callable[[str], None]


@dataclass(slots=True)
class Sealed:
    """What verify_tree() has to say beside differences."""

    size: int = 0
    """How many events of the log are sealed."""
    signed: bool | None = None
    """Whether the newest head is signed with a key at hand; None: there is no head, or no key."""
    remarks: list[str] = field(default_factory=list[str])


def verify_tree(
    connection: Connection[TupleRow],
    keys: Sequence[PublicKey],
    tell: Tell,
    *,
    head: int,
    kept: Note | None = None,
) -> Sealed:
    """Tells every difference. In the transaction that the caller has open, which should be one snapshot;
    `head` is the log's own, `kept` a head from outside the database."""
    sealed = Sealed(checkpoint(connection, CHECKPOINT))
    if sealed.size > head:
        tell(f"log: it ends at position {head}, and {sealed.size} events of it were sealed")
    heads = connection.execute(_HEADS).fetchall()
    tree = _Tree(connection, sealed.size, _root_of(heads, sealed.size), tell)
    tree.check()
    checked = _Heads(tree, keys, tell, sealed)
    checked.check(heads)
    if kept is not None:
        checked.check_kept(kept)
    return sealed


def _root_of(heads: Sequence[TupleRow], size: int) -> bytes | None:
    """As the head over `size` events has it, if there is one."""
    for found, text in heads:
        if found == size:
            try:
                return Note.parse(text).head.root
            except MalformedHead:
                return None
    return None


class _Tree:
    def __init__(
        self, connection: Connection[TupleRow], size: int, sealed_root: bytes | None, tell: Tell
    ) -> None:
        self._connection = connection
        self.size = size
        self._sealed_root = sealed_root
        self._tell = tell
        self._mended: dict[TileId, bytes] = {}
        """In place of stored tiles that are not what they were."""

    def root(self, size: int) -> bytes | None:
        """Of the first `size` leaves; None where that cannot be told."""
        return self._root(size, self._mended)

    def _root(self, size: int, instead: Mapping[TileId, bytes]) -> bytes | None:
        span = Span(0, size)
        try:
            return root_of(span, {**read_tiles(self._connection, tiles_needed([span])), **instead})
        except LookupError:
            return None

    def check(self) -> None:
        above = bytearray()
        for first in range(0, self.size, _PART):
            above += self._leaves(first, min(first + _PART, self.size))
        level = 1
        while above:
            above = self._row(level, bytes(above))
            level += 1
        for stray, number in self._connection.execute(_STRAY, {"size": self.size}).fetchall():
            self._tell(f"tree: tile {stray}/{number} lies beyond its {self.size} events")

    def _leaves(self, first: int, after: int) -> bytes:
        """The roots of the whole tiles of these leaves, `first` being the first of a tile."""
        found = bytearray(_ABSENT * (after - first))
        for position, leaf in read_leaves(self._connection, first, after):
            at = (position - 1 - first) * HASH_BYTES
            found[at : at + HASH_BYTES] = leaf
        above = bytearray()
        for tile, computed, stored in self._beside(0, first // TILE_WIDTH, bytes(found)):
            hashes = computed if stored is None else stored
            if computed != stored:
                hashes = self._differing(tile, computed, stored)
            if len(hashes) == _TILE_BYTES:
                above += complete_root(split(hashes))
        return bytes(above)

    def _differing(self, tile: TileId, computed: bytes, stored: bytes | None) -> bytes:
        """Tells what differs, and returns which of the two goes with the rest of the tree."""
        if stored is None or len(stored) != len(computed) or self._vouched(tile, computed):
            self._tell(f"tree: tile 0/{tile.number} is not what the events give")
            self._mended[tile] = computed
            return computed
        for n, (ours, theirs) in enumerate(zip(split(computed), split(stored), strict=True)):
            if ours != theirs:
                what = (
                    "there is no event, where one" if ours == _ABSENT else "the event is not the one that"
                )
                self._tell(f"log: position {tile.number * TILE_WIDTH + n + 1}: {what} was sealed")
        return stored

    def _vouched(self, tile: TileId, hashes: bytes) -> bool:
        """Whether the tile above, or the head if the tile is not whole, goes with these hashes."""
        if len(hashes) != _TILE_BYTES:
            root = self._root(self.size, {**self._mended, tile: hashes})
            return root is not None and root == self._sealed_root
        number, slot = divmod(tile.number, TILE_WIDTH)
        above = read_tiles(self._connection, [TileId(1, number)]).get(TileId(1, number), b"")
        return above[slot * HASH_BYTES : (slot + 1) * HASH_BYTES] == complete_root(split(hashes))

    def _row(self, level: int, hashes: bytes) -> bytearray:
        """A level of tiles, held against what the level below gives."""
        above = bytearray()
        for tile, computed, stored in self._beside(level, 0, hashes):
            if computed != stored:
                self._tell(f"tree: tile {level}/{tile.number} is not what is below it")
                self._mended[tile] = computed
            if len(computed) == _TILE_BYTES:
                above += complete_root(split(computed))
        return above

    def _beside(
        self, level: int, number: int, hashes: bytes
    ) -> Iterator[tuple[TileId, bytes, bytes | None]]:
        parts = [hashes[at : at + _TILE_BYTES] for at in range(0, len(hashes), _TILE_BYTES)]
        stored = read_tiles(
            self._connection, [TileId(level, n) for n in range(number, number + len(parts))]
        )
        for n, part in enumerate(parts, start=number):
            yield TileId(level, n), part, stored.get(TileId(level, n))


class _Heads:
    def __init__(self, tree: _Tree, keys: Sequence[PublicKey], tell: Tell, sealed: Sealed) -> None:
        self._tree = tree
        self._keys = keys
        self._tell = tell
        self._sealed = sealed
        self._good = 0
        """Up to where the heads go with the tree."""

    def check(self, rows: Sequence[TupleRow]) -> None:
        newest: Note | None = None
        unknown = 0
        for size, text in rows:
            try:
                note = Note.parse(text)
            except MalformedHead:
                self._tell(f"head over {size} events: it cannot be read")
                continue
            self._check_root(note, f"head over {note.head.size} events")
            unknown += not self._is_signed(note)
            newest = note
        size = 0 if newest is None else newest.head.size
        if size != self._tree.size:
            self._tell(f"tree: it has {self._tree.size} events, its newest head {size}")
        if self._keys and newest is not None:
            self._sealed.signed = self._is_signed(newest)
            if not self._sealed.signed:
                self._tell(f"head over {size} events: it is not signed with the key at hand")
            elif unknown:
                self._sealed.remarks.append(f"{unknown} older heads are not signed with the key at hand")

    def check_kept(self, note: Note) -> None:
        name = f"the head that was kept, over {note.head.size} events"
        if self._keys and not self._is_signed(note):
            self._tell(f"{name}: it is not signed with the key at hand")
        if note.head.size > self._tree.size:
            self._tell(f"{name}: the tree has only {self._tree.size}; what came after is gone")
        else:
            self._check_root(note, name)

    def _check_root(self, note: Note, name: str) -> None:
        size = note.head.size
        if size > self._tree.size:
            return
        if self._tree.root(size) == note.head.root:
            self._good = max(self._good, size)
        else:
            self._tell(
                f"{name}: its root is not the tree's; positions {min(self._good, size - 1) + 1} to {size}"
                " are not what they were, or the head is forged"
            )

    def _is_signed(self, note: Note) -> bool:
        return any(key.has_signed(note) for key in self._keys)
