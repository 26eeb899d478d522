"""The Merkle tree of RFC 9162 over a growing list, kept in tiles. Pure.

A leaf is hashed with a leading 0, a node with a leading 1. The tree is stored as the hashes of its complete
subtrees, and of those only every eighth level: tile (level, number) holds up to 256 hashes of subtrees of
256 ** level leaves each, the last of a level as many as there are. All other nodes follow from these, so a
leaf costs its 32 bytes and no more (the layout of the transparency logs: c2sp.org/tlog-tiles).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

HASH_BYTES: Final = 32
TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

_sha256 = hashlib.sha256


class Span(NamedTuple):
    """Leaves from `first` up to, not including, `after`."""

    first: int
    after: int


class TileId(NamedTuple):
    level: int
    number: int


def leaf_hash(data: bytes) -> bytes:
    return _sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return _sha256(b"\1" + left + right).digest()


def split(hashes: bytes) -> list[bytes]:
    """A tile's hashes one by one."""
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]


def complete_root(hashes: Sequence[bytes]) -> bytes:
    """Of a subtree whose lowest nodes are these; their number is a power of two."""
    while len(hashes) > 1:
        hashes = [
            _sha256(b"\1" + left + right).digest()
            for left, right in zip(hashes[::2], hashes[1::2], strict=True)
        ]
    return hashes[0]


def fold_right(roots: Sequence[bytes]) -> bytes:
    """The root over complete subtrees that stand side by side, the largest first."""
    root = roots[-1]
    for left in reversed(roots[:-1]):
        root = node_hash(left, root)
    return root


class TreeHead:
    """The root over leaves that come one by one; keeps no more than the subtrees it consists of."""

    def __init__(self) -> None:
        self.size = 0
        self._roots: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        root = leaf_hash(leaf)
        carry = self.size
        while carry & 1:
            root = node_hash(self._roots.pop(), root)
            carry >>= 1
        self._roots.append(root)
        self.size += 1

    def root(self) -> bytes:
        return fold_right(self._roots) if self._roots else EMPTY_ROOT


def inclusion_path(index: int, size: int) -> list[Span]:
    """The subtrees whose roots prove leaf `index` in the tree of `size` leaves, from the leaf upwards."""
    path: list[Span] = []
    first, after = 0, size
    while after - first > 1:
        middle = first + _left_size(after - first)
        if index < middle:
            path.append(Span(middle, after))
            after = middle
        else:
            path.append(Span(first, middle))
            first = middle
    return path[::-1]


def consistency_path(old: int, size: int) -> list[Span]:
    """The subtrees whose roots prove that the tree of `size` leaves begins with the one of `old`, which
    has one leaf at least and no more than `size`."""
    path: list[Span] = []
    first, after = 0, size
    while old != after:
        middle = first + _left_size(after - first)
        if old <= middle:
            path.append(Span(middle, after))
            after = middle
        else:
            path.append(Span(first, middle))
            first = middle
    if first > 0:  # else the verifier has the old root already
        path.append(Span(first, after))
    return path[::-1]


def tiles_needed(spans: Iterable[Span]) -> set[TileId]:
    """Which tiles root_of() looks at."""
    return {_place(level, index)[0] for span in spans for level, index in _subtrees(span)}


def root_of(span: Span, tiles: Mapping[TileId, bytes]) -> bytes:
    """Of the tree over a span of leaves that is the whole tree, or one of its paths' subtrees. Raises
    LookupError where a tile is missing or holds too little."""
    if span.first == span.after:
        return EMPTY_ROOT
    roots: list[bytes] = []
    for level, index in _subtrees(span):
        tile, begin, count = _place(level, index)
        part = tiles[tile][begin * HASH_BYTES : (begin + count) * HASH_BYTES]
        if len(part) != count * HASH_BYTES:
            raise LookupError(f"tile {tile.level}/{tile.number} holds too little")
        roots.append(complete_root(split(part)))
    return fold_right(roots)


def edge_of(size: int) -> list[TileId]:
    """The last tile of each level, where it is not full: what a tree of `size` leaves grows from."""
    found: list[TileId] = []
    level = 0
    while size:
        if size % TILE_WIDTH:
            found.append(TileId(level, size // TILE_WIDTH))
        size //= TILE_WIDTH
        level += 1
    return found


def grow(size: int, edge: Mapping[TileId, bytes], leaves: bytes) -> dict[TileId, bytes]:
    """The tiles that are new or longer once the hashes `leaves` follow a tree of `size` leaves, whole.
    `edge` has what edge_of() names."""
    changed: dict[TileId, bytes] = {}
    level, added = 0, leaves
    while added:
        number, held = divmod(size, TILE_WIDTH)
        row = edge[TileId(level, number)] + added if held else added
        above: list[bytes] = []
        width = TILE_WIDTH * HASH_BYTES
        for at in range(0, len(row), width):
            tile = row[at : at + width]
            changed[TileId(level, number)] = tile
            number += 1
            if len(tile) == width:
                above.append(complete_root(split(tile)))
        size //= TILE_WIDTH
        level, added = level + 1, b"".join(above)
    return changed


def _left_size(count: int) -> int:
    """The largest power of two below a count of two or more."""
    return 1 << ((count - 1).bit_length() - 1)


def _subtrees(span: Span) -> list[tuple[int, int]]:
    """The complete subtrees, as (level, index in it), that a span consists of, from left to right. The
    first leaf is a multiple of the largest one's size, as it is on every path."""
    found: list[tuple[int, int]] = []
    first = span.first
    while first < span.after:
        level = (span.after - first).bit_length() - 1
        found.append((level, first >> level))
        first += 1 << level
    return found


def _place(level: int, index: int) -> tuple[TileId, int, int]:
    """Where the root of a complete subtree comes from: a tile, and how many hashes of it from which on."""
    row, above = divmod(level, TILE_HEIGHT)
    first = index << above
    return TileId(row, first // TILE_WIDTH), first % TILE_WIDTH, 1 << above
