"""What an export is held against, line by line, while it is read: pure, and fit for files of any size.

Nothing is taken on trust that can be computed: each leaf hash is made again of what its line says, each checkpoint is
held against the tree of the lines before it, and the last line against all of them. What takes more than the lines
before - versions of streams, what was erased - is the database's to check (`eventstore.transfer.importing`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import IO, Any, TypeVar

import msgspec

from eventstore import canonical
from eventstore.erasure import ERASED
from eventstore.errors import InvalidEvent, LogError
from eventstore.merkle import NAME_PATTERN, SALT_BYTES, rfc3339
from eventstore.transfer.exporting import FORMAT
from eventstore.transparency.checkpoints import Checkpoint
from eventstore.transparency.notes import BadNote, VerifierKey
from eventstore.transparency.tree import Frontier

T = TypeVar("T")


class BadExport(LogError):
    """The file is no whole export, or not as it was written; the message says where and what."""


class Header(msgspec.Struct, frozen=True):
    """The first line of an export, as far as an import needs it."""

    minutebook: str
    format: int
    origin: str
    verifier_key: str | None
    through: int
    whole: bool


@dataclass(frozen=True)
class Imported:
    """What was imported: up to which position, its tree's root, how many checkpoints, and how far the last one goes."""

    head: int
    root: bytes
    checkpoints: int
    covered: int


class _Event(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    data: Any
    leaf_hash: str
    metadata: dict[str, Any]
    position: int
    recorded_at: str
    stream: str
    type: str
    version: int
    salt: str | msgspec.UnsetType = msgspec.UNSET
    data_hash: str | msgspec.UnsetType = msgspec.UNSET


class _Signed(msgspec.Struct, forbid_unknown_fields=True):
    checkpoint: str
    signed_at: str


class _Totals(msgspec.Struct, forbid_unknown_fields=True):
    events: int
    head: int
    root: str


class _End(msgspec.Struct, forbid_unknown_fields=True):
    end: _Totals


# Brackets in brackets in brackets are no error of the decoder's own.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _refuse_float(text: str) -> float:
    raise msgspec.DecodeError(f"{text} is a float, which has no canonical form")


_event = msgspec.json.Decoder(_Event, float_hook=_refuse_float).decode
_signed = msgspec.json.Decoder(_Signed).decode
_end = msgspec.json.Decoder(_End).decode
_sorted = msgspec.json.Encoder(order="sorted").encode
_is_name = NAME_PATTERN.fullmatch
# How a moment begins that lies in the same second as another one: 2026-01-31T12:00:00.
_SECOND = 20
_is_fraction = re.compile("[0-9]{6}Z").fullmatch


def read_header(line: bytes) -> Header:
    """What the first line of a file says; raises `BadExport` if no log can be made of the file."""
    try:
        header = msgspec.json.decode(line, type=Header)
    except _UNREADABLE:
        raise BadExport("this is no export of a log: its first line does not say so") from None
    if header.minutebook != "export" or header.format != FORMAT:
        raise BadExport(f"this is no export of a log in format {FORMAT}")
    if not header.whole:
        raise BadExport("this is a part of a log, and no log can be made of it: only a whole export can be imported")
    return header


class ExportCheck:
    """Holds one line after the other against all before it; raises `BadExport`, which names the line."""

    def __init__(self, header: Header, key: VerifierKey | None) -> None:
        self._header = header
        self._key = _key_of(header, key)
        self._must_be_signed = key is not None
        self._tree = Frontier()
        self._line = 1
        self._in_event = False
        self._recorded_at = ""
        self._checkpoints = 0
        self._covered = 0
        self._ended = False

    @property
    def verifier_key(self) -> str | None:
        """By which key the checkpoints are signed; None if there are none."""
        return str(self._key) if self._key is not None and self._checkpoints else None

    def rows(self, lines: Iterable[bytes], notes: IO[bytes]) -> Iterator[bytes]:
        """The events as rows for COPY, in their order; checkpoints go into the file `notes`, as such rows too."""
        for line in lines:
            self._line += 1
            self._in_event = False
            if self._ended:
                raise self._bad("there is more behind the end")
            if line.startswith(b'{"data":'):
                self._in_event = True
                yield self._event_row(line)
            elif line.startswith(b'{"checkpoint":'):
                notes.write(self._checkpoint_row(line))
            else:
                self._check_end(line)
        if not self._ended:
            raise BadExport(f"the file is cut off: it ends behind line {self._line} without saying so")

    def outcome(self) -> Imported:
        """What there was; raises `BadExport` if the key was to show something and there is nothing that it shows."""
        if self._must_be_signed and self._tree.size and not self._checkpoints:
            raise BadExport("there is no checkpoint in this export, so a key shows nothing: import it without --key")
        return Imported(self._tree.size, self._tree.root(), self._checkpoints, self._covered)

    def _event_row(self, line: bytes) -> bytes:
        event = self._decoded(_event, line, "an event")
        self._check_form(event, line)
        metadata = _sorted(event.metadata)
        columns, data_hash = self._data_columns(event)
        leaf_hash = sha256(
            f'\0{{"data_hash":"{data_hash}","metadata":{metadata.decode()},"position":{event.position},'
            f'"recorded_at":"{event.recorded_at}","stream":"{event.stream}","type":"{event.type}",'
            f'"version":{event.version}}}'.encode()
        )
        if leaf_hash.hexdigest() != event.leaf_hash:
            raise self._bad("its leaf hash is not that of what stands there: the line was changed")
        self._tree.append(leaf_hash.digest())
        header = f"{event.position}\t{event.stream}\t{event.version}\t{event.type}\t{event.recorded_at}\t"
        return f"{header}\\\\x{event.leaf_hash}\t".encode() + _escaped(metadata) + columns

    def _check_form(self, event: _Event, line: bytes) -> None:
        if event.position != self._tree.size + 1:
            raise self._bad(f"position {event.position} stands where {self._tree.size + 1} belongs")
        if _sorted(event) != line.removesuffix(b"\n") or (rb"\u0000" in line and not _is_canonical(event)):
            raise self._bad("it is not in canonical form")
        if not _is_name(event.stream) or not _is_name(event.type):
            raise self._bad("its stream or type has a name that no log holds")
        if not 0 < event.version <= event.position:
            raise self._bad(f"it cannot have the version {event.version}")
        if event.recorded_at != self._recorded_at:
            self._check_moment(event.recorded_at)

    def _check_moment(self, text: str) -> None:
        # Most lie in the same second as the one before; taking a moment apart takes as long as all other checks.
        same_second = text[:_SECOND] == self._recorded_at[:_SECOND] and _is_fraction(text[_SECOND:])
        if not same_second and not _is_moment(text):
            raise self._bad("its time is not one as a log writes it")
        if text < self._recorded_at:
            raise self._bad("it was recorded before the event before it")
        self._recorded_at = text

    def _data_columns(self, event: _Event) -> tuple[bytes, str]:
        """The rest of the row, and the hash of salt and data, in hex."""
        if isinstance(event.salt, msgspec.UnsetType):
            return self._erased_columns(event)
        salt = _from_hex(event.salt, SALT_BYTES)
        if salt is None or event.data_hash is not msgspec.UNSET:
            raise self._bad("its salt is none")
        data = _sorted(event.data)
        return b"\t%b\t\\\\x%b\t\\N\n" % (_escaped(data), event.salt.encode()), sha256(salt + data).hexdigest()

    def _erased_columns(self, event: _Event) -> tuple[bytes, str]:
        kept = event.data_hash
        if isinstance(kept, msgspec.UnsetType) or _from_hex(kept, 32) is None or event.data is not None:
            raise self._bad("it has neither data with its salt nor the hash that stays of both")
        if event.type == ERASED:
            raise self._bad("it says what was erased, and is never erased itself")
        return b"\t\\N\t\\N\t\\\\x%b\n" % kept.encode(), kept

    def _checkpoint_row(self, line: bytes) -> bytes:
        signed = self._decoded(_signed, line, "a checkpoint")
        if self._key is None:
            raise self._bad("there is a checkpoint, but the first line names no key")
        try:
            checkpoint = Checkpoint.open(signed.checkpoint, self._key)
        except BadNote as error:
            raise self._bad(str(error)) from None
        if checkpoint.size != self._tree.size or self._covered == checkpoint.size:
            raise self._bad(f"a checkpoint of {checkpoint.size} events stands behind position {self._tree.size}")
        if checkpoint.root != self._tree.root():
            raise self._bad("the events up to here are not those that the checkpoint was signed for")
        if not _is_moment(signed.signed_at):
            raise self._bad("the time at which it was signed is not one as a log writes it")
        self._checkpoints += 1
        self._covered = checkpoint.size
        note = _escaped(signed.checkpoint.encode()).replace(b"\n", b"\\n")
        return b"%d\t%b\t%b\n" % (checkpoint.size, note, signed.signed_at.encode())

    def _check_end(self, line: bytes) -> None:
        totals = self._decoded(_end, line, "an event, a checkpoint or the end").end
        size, root = self._tree.size, self._tree.root().hex()
        if (totals.events, totals.head, self._header.through) != (size, size, size):
            raise self._bad(f"there should be {self._header.through} events, and there are {size}")
        if totals.root != root:
            raise self._bad("the root of the tree is not that of the events")
        self._ended = True

    def _decoded(self, decode: Callable[[bytes], T], line: bytes, what: str) -> T:
        try:
            return decode(line)
        except _UNREADABLE:
            if not line.endswith(b"\n"):
                what = f"{what}: it is cut off, or longer than any line of an export"
            raise self._bad(f"this is not {what}") from None

    def _bad(self, what: str) -> BadExport:
        where = f", position {self._tree.size + 1}" if self._in_event else ""
        return BadExport(f"line {self._line}{where}: {what}")


def _key_of(header: Header, key: VerifierKey | None) -> VerifierKey | None:
    if key is not None and header.verifier_key not in (None, str(key)):
        raise BadExport("the log of this export is signed by another key than the one given")
    if key is not None or header.verifier_key is None:
        return key
    try:
        return VerifierKey.parse(header.verifier_key)
    except LogError as error:
        raise BadExport(f"line 1: {error}") from None


def _is_canonical(event: _Event) -> bool:
    """Whether data and metadata hold nothing that canonical JSON refuses."""
    try:
        canonical.encode([event.data, event.metadata])
    except InvalidEvent:
        return False
    return True


def _is_moment(text: str) -> bool:
    try:
        return rfc3339(datetime.fromisoformat(text)) == text
    except (ValueError, OverflowError):
        return False


def _from_hex(text: str, size: int) -> bytes | None:
    """The bytes, or None if the text is not the one way to write so many of them."""
    try:
        content = bytes.fromhex(text)
    except ValueError:
        return None
    return content if len(content) == size and content.hex() == text else None


def _escaped(text: bytes) -> bytes:
    """JSON as COPY takes it; it holds no line breaks and no tabs, but backslashes."""
    return text.replace(b"\\", b"\\\\")
