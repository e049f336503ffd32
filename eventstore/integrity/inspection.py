"""The inspection of a whole log: that its rows are those that were recorded, in their order, and none is missing.

What is checked is told in `docs/auditing.md`. Everything is seen in one snapshot, so a server may run meanwhile. Two
connections read ranges of positions and let the database make the entries anew, while this process hashes them and
grows the tree above: the memory that it takes does not depend on the length of the log.

Findings come as a reader comes upon them: first those about no event in particular, then by position (what the tree
tells of a range comes behind what its events tell), at last what other tables say of events.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue
from typing import Any, Self

import psycopg

from eventstore.errors import database_errors
from eventstore.integrity import rows
from eventstore.integrity.findings import Finding, runs
from eventstore.integrity.guards import Guards
from eventstore.integrity.tree import WIDTH, KeptCheckpoint, TreeInspection
from eventstore.merkle import leaf_hash
from eventstore.snapshot import share_snapshot
from eventstore.statements import Statement
from eventstore.transparency.checkpoints import Checkpoint
from eventstore.transparency.notes import BadKey, BadNote, VerifierKey

# Some megabytes of entries.
RANGE = 64 * WIDTH
CONNECTIONS = 2
LEAF_BYTES = 32
# The year 1970 in the database's own microseconds, which begin in 2000. Nothing was recorded before, so what is so much
# older was given its time later: in an entry, a year before Christ looks like one after.
_EPOCH = -946_684_800_000_000
# So many ranges are being read, or wait to be looked at.
_AHEAD = CONNECTIONS + 2

Progress = Callable[[int, int], None]
_Connection = psycopg.Connection[tuple[Any, ...]]

_SETTINGS = (
    "SET TIME ZONE 'UTC'; SET client_encoding = 'UTF8'; "
    "SET jit = off; SET enable_seqscan = off; SET max_parallel_workers_per_gather = 0; "
    # Rows that a policy hides from this role would look like deleted ones: better an error that says so.
    "SET row_security = off; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0"
)

_SCHEMA = """
    SELECT relnamespace::pg_catalog.regnamespace::pg_catalog.text FROM pg_catalog.pg_class
    WHERE oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('events')
"""


def inspect(
    conninfo: str,
    *,
    outside: Mapping[str, str] | None = None,
    key: VerifierKey | None = None,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """What is wrong with the log; nothing if all is well. See `Inspection`."""
    return Inspection(conninfo, outside=outside, key=key, progress=progress).findings()


class Inspection:
    """One inspection of a log, and what it has seen so far.

    `outside` are checkpoints that were kept elsewhere, as signed notes by the names that findings give them. Signatures
    must be by `key`; without one by the key that the database names, which shows less. `progress(position, head)`
    is called after each range.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        outside: Mapping[str, str] | None = None,
        key: VerifierKey | None = None,
        progress: Progress | None = None,
        range_size: int = RANGE,
    ) -> None:
        self._conninfo = conninfo
        self._outside_notes = dict(outside or {})
        self._outside: deque[KeptCheckpoint] = deque()
        self._progress = progress
        self._range_size = range_size
        self._seen = 0
        self._moment = _EPOCH
        self._tree = TreeInspection({})
        self._is_gapless = True
        self.key = key
        self.events = 0

    @property
    def root(self) -> bytes | None:
        """The root hash of the tree over all events that were read, None where events are missing."""
        return self._tree.root() if self._is_gapless else None

    @property
    def checkpoints(self) -> tuple[int, int]:
        """How many checkpoints held, and how many of them were kept outside."""
        return self._tree.agreeing, self._tree.agreeing_outside

    def findings(self) -> Generator[Finding, None, None]:
        """Inspects the log, and yields what is wrong.

        Raises `LogUnavailable` when the database cannot be reached, and `LogError` when it refuses to be read.
        """
        with _Snapshot.of(self._conninfo) as snapshot:
            guards = Guards(snapshot.fetch_text)
            yield from guards.missing()
            yield from self._find_key(snapshot)
            yield from self._open_outside()
            head = snapshot.fetch(rows.HEAD)
            last = snapshot.fetch(rows.LAST)
            end = min(_position(head), _position(last)) if head else _position(last)
            yield from self._walk(snapshot, guards, end)
            yield from _of_head(head, last)
            yield from _out_of_order(snapshot)
            yield from self._beyond(snapshot, _position(last))
            yield from _told_elsewhere(snapshot)

    def _find_key(self, snapshot: _Snapshot) -> Iterator[Finding]:
        named = [text for (text,) in snapshot.fetch(rows.KEY)]
        if self.key is not None:
            if named and named != [str(self.key)]:
                yield _unplaced("the database names another key for its checkpoints than the one that was given")
            return
        try:
            self.key = VerifierKey.parse(named[0]) if named else None
        except BadKey as error:
            yield _unplaced(f"the key that the database names for its checkpoints: {error}")

    def _open_outside(self) -> Iterator[Finding]:
        opened: list[KeptCheckpoint] = []
        for name, note in self._outside_notes.items():
            try:
                opened.append(KeptCheckpoint(self._open(note), name))
            except BadNote as error:
                yield _unplaced(f"the checkpoint in {name}: {error}")
        self._outside.extend(sorted(opened, key=lambda each: each.checkpoint.size))

    def _open(self, note: str) -> Checkpoint:
        if self.key is None:
            raise BadNote("there is no key by which to check its signature")
        return Checkpoint.open(note, self.key)

    def _walk(self, snapshot: _Snapshot, guards: Guards, end: int) -> Iterator[Finding]:
        """Reads all events up to `end` in ranges."""
        self._tree = TreeInspection(dict(snapshot.fetch(rows.KEPT_LEVELS)))
        reading = _Reading(snapshot, guards, self._range_size)
        is_keyed = guards.has_key("events", "position")
        for each in reading.ranges(end):
            found = self._of_rows(snapshot, each, is_keyed=is_keyed)
            yield from sorted(found, key=lambda finding: finding.position or 0)
            yield from self._of_tree(each)
            self.events += each.count
            if self._progress is not None:
                self._progress(each.through, end)
        if self._seen < end:
            yield self._gap(end)
        elif self._is_gapless:
            yield from self._tree.end()

    def _of_rows(self, snapshot: _Snapshot, found: _Range, *, is_keyed: bool) -> Iterator[Finding]:
        faults = dict(found.faults)
        positions: Sequence[int] = range(found.after + 1, found.through + 1)
        # As many events as positions are one at each only where a key sees to it.
        if not (is_keyed and found.is_whole and self._seen == found.after and found.is_sound):
            kept = snapshot.fetch(rows.LEAVES, **found.place)
            positions = [position for position, _ in kept]
            yield from self._gaps(positions)
            pairs = zip(kept, found.computed, strict=True)
            faults["leaf"] = [position for (position, leaf), computed in pairs if leaf != computed]
        self._seen = positions[-1] if positions else self._seen
        faults["time"] = self._back_in_time(positions, found.times)
        if faults.get("erasure"):
            named = {position for (position,) in snapshot.fetch(rows.NAMED, **found.place)}
            faults["erasure"] = [position for position in faults["erasure"] or () if position not in named]
        yield from rows.findings(faults)

    def _back_in_time(self, positions: Sequence[int], times: bytes) -> list[int]:
        """The positions whose events were recorded before the one that precedes them."""
        moments = [self._moment, *struct.unpack(f"!{len(positions)}q", times)]
        self._moment = moments[-1]
        if moments == sorted(moments):
            return []
        pairs = zip(positions, itertools.pairwise(moments), strict=True)
        return [position for position, (earlier, later) in pairs if later < earlier]

    def _gaps(self, positions: Iterable[int]) -> Iterator[Finding]:
        for position in positions:
            if position > self._seen + 1:
                yield self._gap(position - 1)
            elif position == self._seen:
                self._is_gapless = False
                yield Finding(position, position, "position", "more than one event stands here")
            self._seen = position

    def _gap(self, through: int) -> Finding:
        # From here on no leaf stands at its index any more.
        self._is_gapless = False
        return Finding(self._seen + 1, through, "gap", "there is no event here: it was deleted")

    def _of_tree(self, found: _Range) -> Iterator[Finding]:
        opened: list[KeptCheckpoint] = []
        for size, note in found.notes:
            try:
                opened.append(self._open_kept(size, note))
            except BadNote as error:
                yield _bad_checkpoint(size, error)
        while self._outside and self._outside[0].checkpoint.size <= found.through:
            opened.append(self._outside.popleft())
        if not found.is_whole or len(found.leaves) != found.count * LEAF_BYTES:
            self._is_gapless = False
        if self._is_gapless:
            opened.sort(key=lambda each: each.checkpoint.size)
            yield from self._tree.follow(found.kept, found.hashes, opened)

    def _open_kept(self, size: int, note: str) -> KeptCheckpoint:
        checkpoint = self._open(note)
        if checkpoint.size != size:
            raise BadNote(f"it is kept as one of {size} events, but says {checkpoint.size}")
        return KeptCheckpoint(checkpoint)

    def _beyond(self, snapshot: _Snapshot, last: int) -> Iterator[Finding]:
        """Checkpoints of more events than there are."""
        for size, note in snapshot.fetch(rows.LARGEST_CHECKPOINT):
            if size > last:
                try:
                    yield _cut_off(last, self._open_kept(size, note))
                except BadNote as error:
                    yield _bad_checkpoint(size, error)
        for kept in self._outside:
            if kept.checkpoint.size > last:
                yield _cut_off(last, kept)


@dataclass(frozen=True)
class _Range:
    """What was read of the positions behind `after` up to `through`."""

    after: int
    through: int
    count: int
    leaves: bytes
    times: bytes
    entries: bytes
    faults: Mapping[str, list[int] | None]
    hashes: Mapping[tuple[int, int], bytes]
    notes: Sequence[tuple[int, str]]

    @property
    def place(self) -> Mapping[str, int]:
        """The range as statements take it."""
        return {"after": self.after, "through": self.through}

    @cached_property
    def computed(self) -> list[bytes]:
        """The leaf hashes that the events should have."""
        return [leaf_hash(entry) for entry in self.entries.split(b"\0")] if self.count else []

    @cached_property
    def is_sound(self) -> bool:
        """Whether all leaf hashes are what they should be."""
        return self.leaves == b"".join(self.computed)

    @property
    def kept(self) -> list[bytes]:
        """The leaf hashes as they are kept, if each has its length."""
        if self.is_sound:
            return self.computed
        return [self.leaves[i : i + LEAF_BYTES] for i in range(0, len(self.leaves), LEAF_BYTES)]

    @property
    def is_whole(self) -> bool:
        """Whether there are as many events as positions."""
        return self.count == self.through - self.after


class _Reading:
    """Reads ranges ahead, several at a time, and hands them out in order."""

    def __init__(self, snapshot: _Snapshot, guards: Guards, size: int) -> None:
        self._snapshot = snapshot
        self._size = size
        self._statement = rows.read_range(versions=guards.has_key("events", "stream", "version"))
        self._with_commands = guards.has_key("commands", "command_id")

    def ranges(self, end: int) -> Iterator[_Range]:
        """All ranges up to `end`; where there is nothing for long, the next one begins near the next event."""
        ahead: deque[Future[_Range]] = deque()
        start = 0
        with self._snapshot.threads() as threads:
            while ahead or start < end:
                while start < end and len(ahead) < _AHEAD:
                    ahead.append(threads.submit(self._read, start, min(start + self._size, end)))
                    start += self._size
                found = ahead.popleft().result()
                if not found.count:
                    start = max(start, self._next(found.through, end))
                yield found

    def _next(self, after: int, end: int) -> int:
        [(position,)] = self._snapshot.fetch(rows.NEXT, after=after)
        return end if position is None else (position - 1) // self._size * self._size

    def _read(self, after: int, through: int) -> _Range:
        fetch, place = self._snapshot.fetch, {"after": after, "through": through}
        [(count, leaves, times, entries, *failed)] = fetch(self._statement, **place)
        faults: dict[str, list[int] | None] = dict(zip(rows.ROW_CHECKS, failed, strict=True))
        if self._with_commands and rows.COMMAND_ID in (entries or b""):
            faults["command"] = [position for (position,) in fetch(rows.UNKNOWN_COMMANDS, **place)]
        hashes = {(level, index): subtree for level, index, subtree in fetch(rows.KEPT_HASHES, **place)}
        notes = [(size, note) for size, note in fetch(rows.CHECKPOINTS, **place)]
        return _Range(after, through, count, leaves or b"", times or b"", entries or b"", faults, hashes, notes)


class _Snapshot:
    """A few connections that see one and the same state of the database, and change nothing."""

    def __init__(self, connections: Iterable[_Connection]) -> None:
        self._all = list(connections)
        self._free: SimpleQueue[_Connection] = SimpleQueue()
        for connection in self._all:
            self._free.put(connection)

    @classmethod
    @contextlib.contextmanager
    def of(cls, conninfo: str) -> Iterator[Self]:
        """Opens the connections for as long as they are needed; tells errors of the database as the log's."""
        with database_errors("the inspection"), contextlib.ExitStack() as stack:
            connections = [stack.enter_context(_connect(conninfo)) for _ in range(CONNECTIONS)]
            share_snapshot(connections)
            yield cls(connections)

    def fetch(self, statement: Statement, **values: object) -> list[tuple[Any, ...]]:
        """All rows of the statement, on a connection that is free by now."""
        with self._connection() as connection:
            given = [values[name] for name in statement.names]
            return connection.execute(statement.text.encode(), given, binary=True).fetchall()

    def fetch_text(self, statement: str) -> list[tuple[Any, ...]]:
        """All rows of a statement without parameters."""
        with self._connection() as connection:
            return connection.execute(statement.encode()).fetchall()

    @contextlib.contextmanager
    def threads(self) -> Iterator[ThreadPoolExecutor]:
        """Threads, one for each connection; when they are left early, what runs in the database is cancelled."""
        threads = ThreadPoolExecutor(CONNECTIONS)
        try:
            yield threads
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            for connection in self._all:
                with contextlib.suppress(psycopg.Error):
                    connection.cancel_safe()
            raise
        finally:
            threads.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[_Connection]:
        connection = self._free.get()
        try:
            yield connection
        finally:
            self._free.put(connection)


@contextlib.contextmanager
def _connect(conninfo: str) -> Iterator[_Connection]:
    connection = psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.RawCursor)
    try:
        connection.execute(_SETTINGS)
        # The log's own schema alone, so that the database's own functions and operators are looked for first: others
        # of the same names could say what they like.
        for (schema,) in connection.execute(_SCHEMA).fetchall():
            connection.execute(f"SET search_path = {schema}".encode())
        yield connection
    finally:
        connection.close()


def _position(found: list[tuple[Any, ...]]) -> int:
    """The position that the head's row or the last event's tells; 0 where there is none."""
    return int(found[0][0]) if found else 0


def _of_head(head: list[tuple[int, str]], last: list[tuple[int, str]]) -> Iterator[Finding]:
    """What is wrong with the row that says where the log ends."""
    if len(head) != 1:
        yield Finding(None, None, "head", f"the log has {len(head)} rows that say where it ends")
        return
    (told, told_at), (found, found_at) = head[0], last[0] if last else (0, None)
    if told > found:
        yield Finding(found + 1, told, "gap", f"the log ends at {found}, but its head says {told}")
    elif found > told:
        yield Finding(told + 1, found, "head", f"events stand behind {told}, which the head says is the last")
    elif found_at is not None and found_at != told_at:
        yield Finding(found, found, "head", "the head was not moved when the last event was recorded")


def _out_of_order(snapshot: _Snapshot) -> Iterator[Finding]:
    """Events at positions before the first, which only the table's constraints keep out, or at none."""
    [(count, first, last)] = snapshot.fetch(rows.OUT_OF_ORDER)
    if count:
        yield Finding(first, last, "position", "an event stands before position 1, or at none")


def _told_elsewhere(snapshot: _Snapshot) -> Iterator[Finding]:
    """What other rows say of events, and is not so."""
    for first, last in runs(position for (position,) in snapshot.fetch(rows.NOT_EMPTIED)):
        yield Finding(first, last, "erasure", "an event says that it was erased, but its data is there")
    for first, last in snapshot.fetch(rows.STRAY_COMMANDS):
        yield Finding(first, last, "command", "a command id is kept for these events, and they do not bear it")


def _bad_checkpoint(size: int, error: BadNote) -> Finding:
    return _unplaced(f"the checkpoint that is kept of {size} events: {error}")


def _cut_off(last: int, kept: KeptCheckpoint) -> Finding:
    what = f"the log ends at {last}, but {kept.shown} was signed"
    return Finding(last + 1, kept.checkpoint.size, "checkpoint", what)


def _unplaced(what: str) -> Finding:
    return Finding(None, None, "checkpoint", what)
