"""The tree grown anew from the leaves, and held against what was kept of it: hashes of its subtrees, and checkpoints.

No input or output: leaves, kept hashes and checkpoints come in, findings come out. What is held in memory are some
hashes for each level, however large the tree.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from eventstore.integrity.findings import Finding, runs
from eventstore.transparency.checkpoints import Checkpoint
from eventstore.transparency.tree import Frontier

# Of so many nodes of one level the next kept level has one.
WIDTH = 256
# The levels that hold anything: 256**8 leaves are more than positions can count.
LEVELS = 7
# The last position that there can be.
_LAST = (1 << 63) - 1


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint whose signature holds, and where it was kept: in the database, or outside by that name."""

    checkpoint: Checkpoint
    outside: str | None = None

    @property
    def shown(self) -> str:
        """What it is called in a finding."""
        return f"the checkpoint of {self.checkpoint.size} events" + (f" in {self.outside}" if self.outside else "")


class GrowingTree:
    """A tree to which leaves are added, and which tells each complete subtree of 256, 256², ... leaves once."""

    def __init__(self) -> None:
        self.size = 0
        self._leaves: list[bytes] = []
        # What is complete at level 1, 2, ... and waits for its level's next subtree.
        self._waiting: list[list[bytes]] = []
        # Blocks of 256 leaves, and the leaves behind the last one: the latter only as far as a root was asked for.
        self._blocks = Frontier()
        self._rest = Frontier()

    def grow(self, leaf_hashes: Sequence[bytes]) -> Iterator[tuple[int, int, bytes]]:
        """Adds leaves at the right; yields what that completes: level, index and hash."""
        place = 0
        while place < len(leaf_hashes):
            taken = leaf_hashes[place : place + WIDTH - len(self._leaves)]
            self._leaves.extend(taken)
            place += len(taken)
            self.size += len(taken)
            if len(self._leaves) == WIDTH:
                yield from self._complete_block()

    def root(self) -> bytes:
        """The root hash of the tree as it stands."""
        if not self._leaves:
            return self._blocks.root()
        self._rest.extend(self._leaves[self._rest.size :])
        # The leaves behind the last block are the rightmost subtree, whose root stands like one more block.
        whole = copy.deepcopy(self._blocks)
        whole.append(self._rest.root())
        return whole.root()

    def _complete_block(self) -> Iterator[tuple[int, int, bytes]]:
        block = _complete_root(self._leaves)
        self._leaves = []
        self._rest = Frontier()
        self._blocks.append(block)
        yield from self._complete(1, self._blocks.size - 1, block)

    def _complete(self, level: int, index: int, subtree: bytes) -> Iterator[tuple[int, int, bytes]]:
        yield level, index, subtree
        if len(self._waiting) < level:
            self._waiting.append([])
        waiting = self._waiting[level - 1]
        waiting.append(subtree)
        if len(waiting) == WIDTH:
            above = _complete_root(waiting)
            waiting.clear()
            yield from self._complete(level + 1, index // WIDTH, above)


class TreeInspection:
    """Grows the tree, and compares it with what was kept on the way."""

    def __init__(self, kept_levels: Mapping[int, int]) -> None:
        """`kept_levels` are the last index that is kept of each level."""
        self._tree = GrowingTree()
        self._kept_levels = dict(kept_levels)
        # Whose kept hashes are wrong: those above are wrong for the same reason.
        self._wrong: dict[int, set[int]] = {}
        self._agreed = 0
        self._suspect: tuple[int, int] | None = None
        self._in_disagreement: set[str] = set()
        self.agreeing = 0
        self.agreeing_outside = 0

    @property
    def size(self) -> int:
        """How many leaves were read."""
        return self._tree.size

    def root(self) -> bytes:
        """The root hash over what was read."""
        return self._tree.root()

    def follow(
        self, leaf_hashes: Sequence[bytes], kept: Mapping[tuple[int, int], bytes], checkpoints: Iterable[KeptCheckpoint]
    ) -> Iterator[Finding]:
        """Goes on with leaves, kept hashes of the subtrees that they complete, and checkpoints up to their end."""
        begin = self._tree.size
        wrong: list[tuple[int, int]] = []
        for each in checkpoints:
            until = each.checkpoint.size - begin
            wrong += self._grow(leaf_hashes[self._tree.size - begin : until], kept)
            yield from self._compare(each)
        wrong += self._grow(leaf_hashes[self._tree.size - begin :], kept)
        yield from _wrong_subtrees(wrong)

    def end(self) -> Iterator[Finding]:
        """What is found once all leaves were read: hashes of subtrees that are not there."""
        for level, index in sorted(self._kept_levels.items()):
            if not 0 < level <= LEVELS:
                yield Finding(None, None, "tree", f"a hash of level {level} is kept, where no tree has one")
            elif (index + 1) * WIDTH**level > self.size:
                what = f"the tree was kept up to subtree {index} of level {level}, but it has {self.size} events"
                yield Finding(self.size + 1, min((index + 1) * WIDTH**level, _LAST), "tree", what)

    def _grow(self, leaf_hashes: Sequence[bytes], kept: Mapping[tuple[int, int], bytes]) -> Iterator[tuple[int, int]]:
        """Grows the tree; yields level and index of those subtrees whose kept hash is another, or is missing."""
        for level, index, subtree in self._tree.grow(leaf_hashes):
            if index > self._kept_levels.get(level, -1) or kept.get((level, index)) == subtree:
                continue
            self._wrong.setdefault(level, set()).add(index)
            if level == 1:
                self._suspect = self._suspect or (index * WIDTH + 1, (index + 1) * WIDTH)
            elif any(below // WIDTH == index for below in self._wrong.get(level - 1, ())):
                continue
            yield level, index

    def _compare(self, kept: KeptCheckpoint) -> Iterator[Finding]:
        kind = "outside" if kept.outside else "kept"
        if self._tree.root() == kept.checkpoint.root:
            self.agreeing += 1
            self.agreeing_outside += kept.outside is not None
            self._agreed = kept.checkpoint.size
            self._suspect = None
            self._in_disagreement.clear()
        elif kept.outside or kind not in self._in_disagreement:
            # All that are kept behind the first one disagree for the same reason.
            self._in_disagreement.add(kind)
            yield self._disagreement(kept)

    def _disagreement(self, kept: KeptCheckpoint) -> Finding:
        first, last = self._suspect or (self._agreed + 1, kept.checkpoint.size)
        what = f"{kept.shown} was signed for another history: an event was changed or exchanged, with its leaf hash"
        return Finding(max(first, self._agreed + 1), min(last, kept.checkpoint.size), "checkpoint", what)


def _wrong_subtrees(wrong: Iterable[tuple[int, int]]) -> Iterator[Finding]:
    by_level: dict[int, list[int]] = {}
    for level, index in wrong:
        by_level.setdefault(level, []).append(index)
    for level, indexes in by_level.items():
        for first, last in runs(indexes):
            what = f"the kept hash of these events in the tree (level {level}) is missing or not theirs"
            yield Finding(first * WIDTH**level + 1, (last + 1) * WIDTH**level, "tree", what)


def _complete_root(hashes: Sequence[bytes]) -> bytes:
    """The root above a power of two of hashes; level by level, which is quicker than one by one."""
    level = list(hashes)
    while len(level) > 1:
        pairs = iter(level)
        # As `node_hash` does it; its call would cost as much as all else.
        level = [sha256(b"\1" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
    return level[0]
