"""Proofs that an event stands in the log, to be checked by anybody, offline (C2SP tlog-proof).

A proof is a text: the leaf's index, the hashes from there to the root, and the checkpoint that has this root.

    c2sp.org/tlog-proof@v1
    index 73893
    <a hash in base64>                             a line for each, from the leaf's sibling on
                                                   an empty line
    <a checkpoint, which is a signed note>

What was recorded is told by the *opening* beside it, a JSON object: the event with its data and the salt of its data's
hash. The leaf's hash follows from it, as `eventstore.merkle` tells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import msgspec

from eventstore import canonical, merkle
from eventstore.errors import InvalidEvent, LogError
from eventstore.transparency import tree
from eventstore.transparency.checkpoints import Checkpoint
from eventstore.transparency.notes import VerifierKey, decode_base64, encode_base64

_FIRST_LINE = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile("index (0|[1-9][0-9]{0,18})")
_MOST_HASHES = 63
_HASH_BYTES = 32


class BadProof(LogError):
    """A proof is none, or does not prove what it should; the message is one line that says why."""


class Opening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event with all that its leaf hash is made of; `salt` in hex, `recorded_at` as RFC 3339."""

    position: int
    stream: str
    version: int
    type: str
    metadata: dict[str, Any]
    recorded_at: str
    data: dict[str, Any]
    salt: str

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """The opening that a JSON text tells, however it is spaced; raises `BadProof`."""
        try:
            opening = msgspec.json.decode(text, type=cls)
            json.loads(text, object_pairs_hook=_each_once)
            return opening
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadProof(f"this is no opened event: {error}") from None

    def json(self) -> bytes:
        """The opening as a JSON text for people, too."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def leaf_hash(self) -> bytes:
        """The hash of the leaf that this event is; raises `BadProof` for what no event can be."""
        try:
            salt, recorded_at = bytes.fromhex(self.salt), datetime.fromisoformat(self.recorded_at)
            time = merkle.rfc3339(recorded_at)
            data, metadata = canonical.encode(self.data), canonical.encode(self.metadata)
        except (ValueError, OverflowError, InvalidEvent) as error:
            raise BadProof(f"this is no event of the log: {error}") from None
        # Nothing may break out of its place in the entry, or else one leaf could be told as two events.
        if not all(map(merkle.NAME_PATTERN.fullmatch, (self.stream, self.type))):
            raise BadProof("this is no event of the log: its stream or type cannot be one's")
        # What is read as the same would be shown as it stands here, and is not what was recorded.
        if (self.salt, self.recorded_at) != (salt.hex(), time):
            raise BadProof("this is no event of the log: its salt or time is not written as the log writes it")
        entry = merkle.entry(
            position=self.position,
            stream=self.stream,
            version=self.version,
            event_type=self.type,
            metadata=metadata,
            recorded_at=recorded_at,
            data_hash=merkle.data_hash(salt, data),
        )
        return merkle.leaf_hash(entry)


@dataclass(frozen=True)
class Proof:
    """That a leaf stands at an index of the tree of a checkpoint: the hashes on its way to the root, and the note."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str

    def text(self) -> str:
        """The proof as it is handed on."""
        hashes = "".join(f"{encode_base64(each)}\n" for each in self.hashes)
        return f"{_FIRST_LINE}\nindex {self.index}\n{hashes}\n{self.checkpoint}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The proof that a text is; raises `BadProof`. Extra data, which proves nothing, is passed over."""
        head, separator, checkpoint = text.partition("\n\n")
        first, *lines = head.split("\n")
        if first != _FIRST_LINE or not separator:
            raise BadProof(f"this is no proof: it does not begin with {_FIRST_LINE}")
        if lines and lines[0].startswith("extra "):
            del lines[0]
        index = _INDEX.fullmatch(lines[0]) if lines else None
        if index is None or len(lines) > 1 + _MOST_HASHES:
            raise BadProof("this is no proof: it does not tell the index of its leaf")
        return cls(int(index[1]), tuple(_hashes(lines[1:])), checkpoint)

    def check(self, opening: Opening, key: VerifierKey) -> Checkpoint:
        """The checkpoint that shows the event to be in the log of this key.

        Raises `BadNote` unless the key has signed it, and `BadProof` unless this event stands at this place.
        """
        checkpoint = Checkpoint.open(self.checkpoint, key)
        if opening.position != self.index + 1:
            raise BadProof(f"the proof is of position {self.index + 1}, the event of {opening.position}")
        leaf, size = opening.leaf_hash(), checkpoint.size
        if not tree.verify_inclusion(leaf, self.index, size, self.hashes, checkpoint.root):
            raise BadProof("the proof does not hold: this is not what the log has recorded there")
        return checkpoint


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    # Of a key that stands there twice people may read the one value, while the other is checked.
    if len(dict(pairs)) < len(pairs):
        raise BadProof("this is no opened event: a key stands in it twice")


def _hashes(lines: list[str]) -> Iterator[bytes]:
    for line in lines:
        try:
            found = decode_base64(line)
        except ValueError:
            found = b""
        if len(found) != _HASH_BYTES:
            raise BadProof("this is no proof: one of its hashes is none")
        yield found
