"""The tree as it is kept and published: in tiles of 256 hashes (C2SP tlog-tiles).

Level 0 are the events' leaf hashes, as they stand in the log; a hash of level `l + 1` is the root of 256 hashes of
level `l`, and stands in `tree_hashes`, where `extend` puts it once they are all there. So the tree is read by ranges of
an index only, and the hashes of its right edge are computed when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, aggregate_order_by

from eventstore import merkle, wire
from eventstore.connection import Row
from eventstore.errors import LogError
from eventstore.statements import Statement
from eventstore.tables import events, tree_hashes
from eventstore.transparency import tree
from eventstore.transparency.tree import Node, Range

WIDTH = 256
_HEIGHT = 8  # levels of the binary tree between one level of tiles and the next
_HASH_BYTES = 32
_LEVELS = range(1, 8)  # more than positions have bits
_LARGEST_ENTRY = 0xFFFF
_PATH = re.compile(r"((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


class Session(Protocol):
    """What runs statements: a `Reader`, or one connection."""

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        """All rows of the statement."""


class Tiles:
    """The tiles of a log's tree; which of them there are, the size of a checkpoint tells (`leaves_through`)."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def hash_tile(self, level: int, index: int, width: int = WIDTH) -> bytes:
        """The first `width` hashes of a tile, 32 bytes each."""
        return await self._hashes(level, index * WIDTH, width)

    async def hashes(self, level: int, first: int, count: int) -> list[bytes]:
        """`count` hashes of a level from the `first` on; raises `LogError` if one is not there."""
        return _split(await self._hashes(level, first, count))

    async def entries(self, index: int, width: int = WIDTH) -> bytes:
        """The first `width` entries of a bundle, each behind its length as a big-endian uint16."""
        rows = await self._session.fetch(_ENTRIES, first=index * WIDTH, end=index * WIDTH + width)
        return b"".join(_framed(entry) for (entry,) in _all(rows, width))

    async def _hashes(self, level: int, first: int, count: int) -> bytes:
        if level == 0:
            [(found,)] = await self._session.fetch(_LEAVES, first=first, end=first + count)
        else:
            [(found,)] = await self._session.fetch(_NODES, level=level, first=first, end=first + count)
        if len(found or b"") != count * _HASH_BYTES:
            raise LogError(f"the tree has not all of its hashes {first} to {first + count - 1} of level {level}")
        return bytes(found)


class Tree:
    """Roots and proofs of a log's tree at any size up to which it is kept (`extend`)."""

    def __init__(self, session: Session) -> None:
        self._tiles = Tiles(session)

    async def root(self, size: int) -> bytes:
        """The root hash of the tree of the first `size` leaves."""
        [root] = await self.hashes([Range(0, size)])
        return root

    async def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """The hashes that lead from a leaf to the root of the tree of `size` leaves."""
        return await self.hashes(tree.inclusion_ranges(index, size))

    async def consistency_proof(self, old: int, new: int) -> list[bytes]:
        """The hashes that lead from the root of the tree of `old` leaves to that of `new` leaves."""
        return await self.hashes(tree.consistency_ranges(old, new))

    async def hashes(self, ranges: Sequence[Range]) -> list[bytes]:
        """The hashes of nodes, of each tile in question by one reading."""
        read: dict[tuple[int, int], tuple[int, list[bytes]]] = {}
        for (level, index), (first, end) in _stretches(tree.nodes(ranges)).items():
            read[level, index] = first, await self._tiles.hashes(level, first, end - first)

        def subtree(node: Node) -> bytes:
            level, first, end = _place(node)
            start, hashes = read[level, first // WIDTH]
            return tree.root(hashes[first - start : end - start])

        return tree.hashes_of(ranges, subtree)


async def extend(session: Session, size: int) -> None:
    """Keeps the hashes of all tiles that are full in the tree of `size` leaves.

    It computes one tile at a time and lets others go on in between; where it was stopped, it goes on. Only one session
    at a time may do it.
    """
    tiles = Tiles(session)
    for level in _LEVELS:
        rows = await session.fetch(_LAST, level=level)
        have, full = int(rows[0][0]) + 1 if rows else 0, size >> (_HEIGHT * level)
        for first in range(have, full, WIDTH):
            numbers = range(first, min(first + WIDTH, full))
            roots = [tree.root(await tiles.hashes(level - 1, number * WIDTH, WIDTH)) for number in numbers]
            await session.fetch(_KEEP, level=level, before=first - 1, hashes=wire.bytea_array(roots))


def leaves_through(level: int, index: int, width: int) -> int:
    """How many leaves a tree must have to have the first `width` hashes of this tile; of entries, the level is 0."""
    return (index * WIDTH + width) << (_HEIGHT * level)


def tile_path(index: int) -> str:
    """A tile's index as its path tells it: 1234067 is `x001/x234/067`."""
    groups = [f"{index % 1000:03}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03}")
    return "/".join(reversed(groups))


def parse_tile_path(path: str) -> tuple[int, int] | None:
    """The index and the width that a path tells (`<N>[.p/<W>]`); None for what is no path of a tile."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    index, width = int(re.sub("[x/]", "", match[1])), int(match[2] or WIDTH)
    if tile_path(index) != match[1] or width > WIDTH or match[2] == str(WIDTH):
        return None
    return index, width


def _place(node: Node) -> tuple[int, int, int]:
    """The hashes that a complete subtree stands above: their level, the first of them, the one behind the last."""
    level, height = divmod(node.level, _HEIGHT)
    return level, node.index << height, (node.index + 1) << height


def _stretches(nodes: Iterable[Node]) -> Mapping[tuple[int, int], tuple[int, int]]:
    """By the level and index of each tile that the nodes need, from which hash of the level to which they need it."""
    needed: dict[tuple[int, int], tuple[int, int]] = {}
    for level, first, end in map(_place, nodes):
        known_first, known_end = needed.get((level, first // WIDTH), (first, end))
        needed[level, first // WIDTH] = min(first, known_first), max(end, known_end)
    return needed


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[start : start + _HASH_BYTES] for start in range(0, len(hashes), _HASH_BYTES)]


def _all(rows: list[Row], count: int) -> list[Row]:
    if len(rows) != count:
        raise LogError(f"the log has {len(rows)} events where there should be {count}")
    return rows


def _framed(entry: bytes) -> bytes:
    if len(entry) > _LARGEST_ENTRY:
        raise LogError(f"an entry of {len(entry)} bytes is too long to be published")
    return len(entry).to_bytes(2) + entry


def _bigint(name: str) -> sa.BindParameter[int]:
    return sa.bindparam(name, type_=sa.BigInteger)


def _joined(hashes: sa.Column[bytes], order: sa.Column[int]) -> sa.Function[bytes]:
    """All hashes of a range as one value: 256 rows would cost ten times as much to read."""
    return sa.func.string_agg(hashes, aggregate_order_by(sa.literal_column("''::bytea"), order), type_=BYTEA)


# Hash `i` of level 0 is that of position `i + 1`.
_LEAF_RANGE = sa.and_(events.c.position > _bigint("first"), events.c.position <= _bigint("end"))
_LEVEL = tree_hashes.c.level == _bigint("level")
_LEAVES = Statement(sa.select(_joined(events.c.leaf_hash, events.c.position)).where(_LEAF_RANGE))
_NODES = Statement(
    sa.select(_joined(tree_hashes.c.hash, tree_hashes.c.index)).where(
        _LEVEL, tree_hashes.c.index >= _bigint("first"), tree_hashes.c.index < _bigint("end")
    )
)
_LAST = Statement(
    sa.select(tree_hashes.c.index).where(_LEVEL).order_by(tree_hashes.c.index.desc()).limit(sa.literal_column("1"))
)


def _keep() -> Statement:
    given = (
        sa.func.unnest(sa.bindparam("hashes", type_=ARRAY(BYTEA)))
        .table_valued(sa.column("hash", BYTEA), with_ordinality="ordinal")
        .render_derived(name="given")
    )
    rows = sa.select(sa.cast(_bigint("level"), sa.SmallInteger), _bigint("before") + given.c.ordinal, given.c.hash)
    return Statement(sa.insert(tree_hashes).from_select(["level", "index", "hash"], rows))


_KEEP = _keep()
_ENTRIES = Statement(sa.select(merkle.recorded_entry_sql(events)).where(_LEAF_RANGE).order_by(events.c.position))
