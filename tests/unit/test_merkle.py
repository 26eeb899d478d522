"""The tree against RFC 9162's own words, and against the vectors that its implementations share."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.merkle import (
    EMPTY_ROOT,
    Span,
    TileId,
    consistency_path,
    edge_of,
    grow,
    inclusion_path,
    leaf_hash,
    node_hash,
    root_of,
    tiles_needed,
)
from examples.check_proof import is_consistent, root_from_path

# The eight leaves and roots of the reference implementation of RFC 6962 (certificate-transparency's
# merkle_tree_test.cc), which every later one repeats.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def hashed(*leaves: bytes) -> bytes:
    return b"".join(leaf_hash(leaf) for leaf in leaves)


def numbered(count: int) -> list[bytes]:
    return [str(n).encode() for n in range(count)]


def naive(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, section 2.1.1, word for word."""
    n = len(leaves)
    if n == 0:
        return hashlib.sha256().digest()
    if n == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while 2 * k < n:
        k *= 2
    return hashlib.sha256(b"\1" + naive(leaves[:k]) + naive(leaves[k:])).digest()


def naive_inclusion(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH, section 2.1.3.1."""
    n = len(leaves)
    if n == 1:
        return []
    k = 1
    while 2 * k < n:
        k *= 2
    if m < k:
        return [*naive_inclusion(m, leaves[:k]), naive(leaves[k:])]
    return [*naive_inclusion(m - k, leaves[k:]), naive(leaves[:k])]


def naive_consistency(m: int, leaves: list[bytes], *, whole: bool = True) -> list[bytes]:
    """SUBPROOF, section 2.1.4.1."""
    n = len(leaves)
    if m == n:
        return [] if whole else [naive(leaves)]
    k = 1
    while 2 * k < n:
        k *= 2
    if m <= k:
        return [*naive_consistency(m, leaves[:k], whole=whole), naive(leaves[k:])]
    return [*naive_consistency(m - k, leaves[k:], whole=False), naive(leaves[:k])]


class Tree:
    """A tree that grows in steps and keeps its tiles, as the sealer does."""

    def __init__(self) -> None:
        self.size = 0
        self.tiles: dict[TileId, bytes] = {}

    def add(self, leaves: list[bytes]) -> "Tree":
        edge = {tile: self.tiles[tile] for tile in edge_of(self.size)}
        self.tiles |= grow(self.size, edge, hashed(*leaves))
        self.size += len(leaves)
        return self

    def roots(self, spans: list[Span]) -> list[bytes]:
        """With no other tiles at hand than those that are asked for."""
        needed = {tile: self.tiles[tile] for tile in tiles_needed(spans)}
        return [root_of(span, needed) for span in spans]

    def root(self, size: int | None = None) -> bytes:
        return self.roots([Span(0, self.size if size is None else size)])[0]


@pytest.mark.parametrize("size", range(1, 9))
def test_the_vectors_of_rfc_6962(size: int) -> None:
    assert Tree().add(LEAVES[:size]).root().hex() == ROOTS[size - 1]
    assert Tree().add(LEAVES).root(size).hex() == ROOTS[size - 1]


def test_the_empty_tree() -> None:
    assert Tree().root() == EMPTY_ROOT == naive([])
    assert edge_of(0) == []


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), max_size=6), st.randoms(use_true_random=False))
def test_a_tree_that_grew_in_any_steps_is_the_tree_over_all_leaves(
    steps: list[int], choice: random.Random
) -> None:
    tree = Tree()
    leaves = numbered(sum(steps))
    for step in steps:
        tree.add(leaves[tree.size : tree.size + step])
    assert tree.root() == naive(leaves)
    if leaves:
        older = choice.randint(1, len(leaves))
        assert tree.root(older) == naive(leaves[:older])


@settings(deadline=None)
@given(st.integers(1, 1200), st.data())
def test_a_leaf_is_proved_by_its_path_and_by_no_other(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    leaves = numbered(size)
    tree = Tree().add(leaves)
    path = tree.roots(inclusion_path(index, size))
    assert path == naive_inclusion(index, leaves)
    leaf = leaf_hash(leaves[index])
    assert root_from_path(index, size, leaf, path) == tree.root()
    assert root_from_path(index, size, leaf_hash(b"x"), path) != tree.root()
    for at in range(len(path)):
        wrong = [*path[:at], node_hash(leaf, leaf), *path[at + 1 :]]
        assert root_from_path(index, size, leaf, wrong) != tree.root()
    assert root_from_path(index, size, leaf, [*path, leaf]) is None
    assert root_from_path(size, size, leaf, path) is None


@settings(deadline=None)
@given(st.integers(1, 1200), st.data())
def test_a_tree_that_only_grew_is_consistent_and_no_other(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size))
    leaves = numbered(size)
    tree = Tree().add(leaves)
    path = tree.roots(consistency_path(old, size))
    assert path == naive_consistency(old, leaves)
    before = tree.root(old)
    assert is_consistent(old, size, before, tree.root(), path)
    changed = data.draw(st.integers(0, old - 1))
    forged = Tree().add([b"x" if n == changed else leaf for n, leaf in enumerate(leaves)])
    assert not is_consistent(old, size, before, forged.root(), forged.roots(consistency_path(old, size)))
    assert not is_consistent(old, size, forged.root(old), tree.root(), path)
    assert not is_consistent(old, size, before, tree.root(), [*path, before])


def test_three_levels_of_tiles() -> None:
    """256 ** 2 leaves and some: only hashes, since the naive tree would take long."""
    size = 65_536 + 3 * 256 + 7
    leaves = [n.to_bytes(32, "big") for n in range(size)]
    tiles = grow(0, {}, b"".join(leaves))
    assert sorted(level for level, _ in tiles).count(2) == 1
    stepwise = grow(0, {}, b"".join(leaves[:66_000]))
    stepwise |= grow(66_000, {t: stepwise[t] for t in edge_of(66_000)}, b"".join(leaves[66_000:]))
    assert stepwise == tiles
    whole = root_of(Span(0, size), tiles)
    assert (
        root_from_path(
            65_600, size, leaves[65_600], [root_of(s, tiles) for s in inclusion_path(65_600, size)]
        )
        == whole
    )
    old = root_of(Span(0, 65_537), tiles)
    assert is_consistent(
        65_537, size, old, whole, [root_of(s, tiles) for s in consistency_path(65_537, size)]
    )


def test_a_tile_that_is_missing_or_short_is_told() -> None:
    tiles = Tree().add(numbered(300)).tiles
    with pytest.raises(LookupError):
        root_of(Span(0, 300), {TileId(0, 1): tiles[TileId(0, 1)]})
    with pytest.raises(LookupError, match="0/1"):
        root_of(Span(0, 300), {**tiles, TileId(0, 1): tiles[TileId(0, 1)][:-32]})
