"""The Merkle tree (RFC 6962, section 2.1): roots, inclusion proofs, consistency proofs.

Leaves are numbered from 0, so the leaf of position `p` has the index `p - 1`. Hashes are the 32 bytes of SHA-256;
what the hash of a leaf is made of is told by `eventstore.merkle`.

A proof is made of the hashes of ranges of leaves. Each range is the concatenation of a few *complete subtrees*, of
`2**level` leaves that begin at a multiple of that; these never change once they are full, so they are all that must
be kept. Whoever makes a proof learns which complete subtrees it takes (`nodes`), gets their hashes from wherever they
are kept, and folds them (`hashes_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

EMPTY_ROOT = sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class Node:
    """A complete subtree: the `index`-th one, from 0, among those of `2**level` leaves."""

    level: int
    index: int


@dataclass(frozen=True, slots=True)
class Range:
    """The leaves from `start` up to but not including `end`, which are a node of some tree or its root."""

    start: int
    end: int

    def nodes(self) -> Iterator[Node]:
        """The complete subtrees that make up the range, from the left, which is from large to small."""
        start = self.start
        while start < self.end:
            level = (self.end - start).bit_length() - 1
            yield Node(level, start >> level)
            start += 1 << level


# Where the hashes of complete subtrees come from.
Subtree = Callable[[Node], bytes]


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of the node above two others."""
    return sha256(b"\1" + left + right).digest()


class Frontier:
    """A growing tree, of which only its right edge is held: a hash for each bit of the size that is set."""

    def __init__(self, size: int = 0, edge: Iterable[bytes] = ()) -> None:
        """Goes on from a tree of `size` leaves, whose complete subtrees from the left (`Range.nodes`) are `edge`."""
        self.size = size
        self._edge = list(edge)
        if len(self._edge) != size.bit_count():
            raise ValueError(f"the edge of a tree of {size} leaves has {size.bit_count()} hashes")

    def append(self, leaf_hash: bytes) -> None:
        """Adds a leaf at the right."""
        full, size = leaf_hash, self.size
        while size & 1:
            full = node_hash(self._edge.pop(), full)
            size >>= 1
        self._edge.append(full)
        self.size += 1

    def extend(self, leaf_hashes: Iterable[bytes]) -> None:
        """Adds many leaves at the right."""
        for leaf_hash in leaf_hashes:
            self.append(leaf_hash)

    def root(self) -> bytes:
        """The root hash of the tree as it stands."""
        return _fold(self._edge)


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """The root hash of the tree over these leaves."""
    frontier = Frontier()
    frontier.extend(leaf_hashes)
    return frontier.root()


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The ranges whose hashes are the inclusion proof of a leaf, from the leaf's sibling to the root's child.

    Raises `ValueError` for a leaf that the tree of this size does not have (RFC 6962, section 2.1.1).
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    ranges: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _left_size(end - start)
        if index < middle:
            ranges.append(Range(middle, end))
            end = middle
        else:
            ranges.append(Range(start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """The ranges whose hashes prove that the tree of `new` leaves begins with that of `old` leaves.

    Of a tree without leaves and of the same tree there is nothing to prove. Raises `ValueError` unless
    `0 <= old <= new` (RFC 6962, section 2.1.2).
    """
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} leaves does not begin with one of {old}")
    if old in (0, new):
        return []
    ranges: list[Range] = []
    start, end = 0, new
    while old != end:
        middle = start + _left_size(end - start)
        if old <= middle:
            ranges.append(Range(middle, end))
            end = middle
        else:
            ranges.append(Range(start, middle))
            start = middle
    # The verifier has the old root; it is told only where that is not a subtree of the new tree by itself.
    if start:
        ranges.append(Range(start, end))
    return ranges[::-1]


def nodes(ranges: Iterable[Range]) -> list[Node]:
    """The complete subtrees that `hashes_of` will ask for."""
    return [node for each in ranges for node in each.nodes()]


def hashes_of(ranges: Iterable[Range], subtree: Subtree) -> list[bytes]:
    """The hashes of the ranges, made of those of complete subtrees."""
    return [_fold([subtree(node) for node in each.nodes()]) for each in ranges]


def of_leaves(leaf_hashes: Sequence[bytes]) -> Subtree:
    """Complete subtrees computed from leaves that are at hand."""
    return lambda node: root(leaf_hashes[node.index << node.level : (node.index + 1) << node.level])


def inclusion_proof(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """The hashes that lead from a leaf to the root of the tree of `size` leaves."""
    return hashes_of(inclusion_ranges(index, size), subtree)


def consistency_proof(old: int, new: int, subtree: Subtree) -> list[bytes]:
    """The hashes that lead from the root of the tree of `old` leaves to that of `new` leaves."""
    return hashes_of(consistency_ranges(old, new), subtree)


def verify_inclusion(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the proof shows the leaf to be at this index in the tree of this size and root."""
    if not 0 <= index < size:
        return False
    ranges = inclusion_ranges(index, size)
    if len(proof) != len(ranges):
        return False
    found = leaf_hash
    for beside, where in zip(proof, ranges, strict=True):
        found = node_hash(beside, found) if where.start < index else node_hash(found, beside)
    return found == root


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Whether the proof shows the tree of `new` leaves to begin with that of `old` leaves, both of these roots."""
    if not 0 <= old <= new:
        return False
    ranges = consistency_ranges(old, new)
    if len(proof) != len(ranges):
        return False
    if not ranges:
        return old_root == (new_root if old else EMPTY_ROOT)
    # The leaves just before the old tree's end: the proof tells their hash, unless the old root is that.
    seeded = ranges[0].end == old
    as_old = as_new = proof[0] if seeded else old_root
    for beside, where in zip(proof[seeded:], ranges[seeded:], strict=True):
        if where.start < old:
            as_old = node_hash(beside, as_old)
            as_new = node_hash(beside, as_new)
        else:
            as_new = node_hash(as_new, beside)
    return (as_old, as_new) == (old_root, new_root)


def _left_size(size: int) -> int:
    """How many of several leaves stand in the left subtree: the largest power of two that is smaller."""
    return 1 << ((size - 1).bit_length() - 1)


def _fold(hashes: Sequence[bytes]) -> bytes:
    """The root above complete subtrees from the left, which is from large to small."""
    if not hashes:
        return EMPTY_ROOT
    folded = hashes[-1]
    for left in reversed(hashes[:-1]):
        folded = node_hash(left, folded)
    return folded
