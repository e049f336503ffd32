"""Exports the log as lines of JSON, from one snapshot: all of it, a stretch, or what concerns one thing.

    {"minutebook":"export","format":1,...}      what this is, and which part of the log
    {"data":{...},"leaf_hash":"...",...}        an event as canonical JSON: all that its leaf hash is made of, and that
    {"checkpoint":"...","signed_at":"..."}      behind the event that completes its tree
    {"end":{"events":1,"head":1,"root":"..."}}  without this line the file was cut off

or, for other people's tools, as CloudEvents, one a line and nothing else.

Data and metadata go out as the texts that were hashed. The database makes the lines, a page at a time on each of two
connections that see one snapshot, while this process deals with the pages before; how large the log is does not matter.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from queue import SimpleQueue
from typing import NamedTuple
from urllib.parse import quote

import msgspec
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, aggregate_order_by

from eventstore.erasure import named_positions
from eventstore.errors import LogError, database_errors
from eventstore.merkle import rfc3339_sql, utf8
from eventstore.snapshot import share_snapshot
from eventstore.statements import Statement, inline
from eventstore.tables import checkpoints, events, log_head, log_key
from eventstore.transparency.tree import Frontier

FORMAT = 1
# Events on a page: enough that the round trip does not matter, few enough that some pages can be held in memory. It is
# a power of two, so that pages are subtrees of the Merkle tree.
PAGE = 2048
_CONNECTIONS = 2
_AHEAD = 3

# Rows that a policy hides from this role would be missing in the file: better an error that says so.
_SETTINGS = (
    "SET jit = off; SET row_security = off; SET client_encoding = 'UTF8'; "
    "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0"
)

# Takes a part of the file.
Write = Callable[[bytes], object]
Progress = Callable[[int, int], None]
_Connection = psycopg.Connection[tuple[object, ...]]


@dataclass(frozen=True)
class Concerning:
    """The events that concern one thing, and those that came after them in their streams.

    They have its `number` at one of the `keys` of their data, or as the actor (with `acted`), or are at `position`.
    """

    number: int
    keys: tuple[str, ...]
    acted: bool = False
    position: int | None = None


@dataclass(frozen=True)
class Selection:
    """Which events: `after < position <= through` (None: to the end), all of them or those that concern something.

    `shown` says in the header what was asked for, by its name.
    """

    after: int = 0
    through: int | None = None
    concerning: tuple[Concerning, ...] = ()
    shown: Mapping[str, str] = field(default_factory=dict)


EVERYTHING = Selection()


@dataclass(frozen=True)
class Exported:
    """What was written: how many events, of which stretch, and whether a log can be made of it again.

    `root` is the tree's at `through`; None for what does not begin at position 1 or leaves some out.
    """

    events: int
    after: int
    through: int
    is_whole: bool
    root: bytes | None = None


class _Header(msgspec.Struct):
    minutebook: str
    format: int
    origin: str
    verifier_key: str | None
    after: int
    through: int
    whole: bool
    selection: Mapping[str, str]


class _Page(NamedTuple):
    through: int
    lines: bytes
    leaves: bytes
    events: int


def export_log(
    conninfo: str, write: Write, selection: Selection = EVERYTHING, *, origin: str, progress: Progress | None = None
) -> Exported:
    """Writes the selected events as this log's own format, which can be imported if it is whole.

    `progress(done, of)` counts positions. Raises `LogError` for a stretch that the log does not have, and where events
    are missing in what should be whole; and `LogUnavailable` when the database cannot be reached.
    """
    with _snapshot(conninfo) as connections:
        part = _part(connections[0], selection)
        write(_header(connections[0], part, selection, origin))
        tree = Frontier() if part.is_from_beginning else None
        count = 0
        for page in _pages(connections, _log_lines(selection), selection, part, progress):
            write(page.lines)
            count += page.events
            if tree is not None:
                if count != page.through:
                    raise LogError(f"the log has not all events up to {page.through}: `minutebook verify` says more")
                tree.append(_root(page.leaves))
        root = None if tree is None else tree.root()
        write(_end(count, part.through, root))
        return Exported(count, part.after, part.through, part.is_whole, root)


def export_cloudevents(
    conninfo: str, write: Write, selection: Selection = EVERYTHING, *, origin: str, progress: Progress | None = None
) -> Exported:
    """Writes the selected events as CloudEvents 1.0 in structured mode, one JSON object a line.

    Errors and `progress` are those of `export_log`.
    """
    with _snapshot(conninfo) as connections:
        part = _part(connections[0], selection)
        count = 0
        for page in _pages(connections, _cloudevent_lines(selection, origin), selection, part, progress):
            write(page.lines)
            count += page.events
        return Exported(count, part.after, part.through, is_whole=False)


class _Part(NamedTuple):
    after: int
    through: int
    is_from_beginning: bool
    is_whole: bool


@contextmanager
def _snapshot(conninfo: str) -> Iterator[list[_Connection]]:
    """Connections that all see the database as it stands now, whatever is committed from now on."""
    with database_errors("the export"), ExitStack() as stack:
        connections: list[_Connection] = [
            stack.enter_context(psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.RawCursor))
            for _ in range(_CONNECTIONS)
        ]
        for connection in connections:
            connection.execute(_SETTINGS)
        share_snapshot(connections)
        yield connections


_HEAD = Statement(sa.select(log_head.c.position))
_KEY = Statement(
    sa.select(log_key.c.verifier_key).where(
        sa.exists().where(checkpoints.c.size <= sa.bindparam("through", type_=sa.BigInteger))
    )
)


def _erased_later() -> Statement:
    """Whether an event behind `through` says that one up to it was erased: without it, nothing does."""
    through = sa.bindparam("through", type_=sa.BigInteger)
    later = sa.select(events.c.type, events.c.data).where(events.c.position > through).subquery("later")
    named = named_positions(later).subquery("named")
    (position,) = named.c
    return Statement(sa.select(sa.exists().where(position <= through)))


_ERASED_LATER = _erased_later()


def _part(connection: _Connection, selection: Selection) -> _Part:
    head = int(str(_one(connection, _HEAD)))
    through = head if selection.through is None else selection.through
    if through > head:
        raise LogError(f"the log has no position {through} yet: it ends at {head}")
    if selection.after > through:
        raise LogError(f"there is nothing behind position {selection.after} up to {through}")
    is_from_beginning = selection.after == 0 and not selection.concerning
    is_whole = is_from_beginning and not _one(connection, _ERASED_LATER, through=through)
    return _Part(selection.after, through, is_from_beginning, is_whole)


def _header(connection: _Connection, part: _Part, selection: Selection, origin: str) -> bytes:
    key = _one(connection, _KEY, through=part.through)
    header = _Header(
        minutebook="export",
        format=FORMAT,
        origin=origin,
        verifier_key=None if key is None else str(key),
        after=part.after,
        through=part.through,
        whole=part.is_whole,
        selection=selection.shown,
    )
    return msgspec.json.encode(header) + b"\n"


def _end(count: int, head: int, root: bytes | None) -> bytes:
    end = {"events": count, "head": head, "root": None if root is None else root.hex()}
    return msgspec.json.encode({"end": end}) + b"\n"


def _pages(
    connections: list[_Connection],
    statement: Statement,
    selection: Selection,
    part: _Part,
    progress: Progress | None,
) -> Iterator[_Page]:
    """The lines of the part, page by page; the next ones are made while the caller deals with the last one."""
    patterns = _patterns(selection)
    idle: SimpleQueue[_Connection] = SimpleQueue()
    for connection in connections:
        idle.put(connection)

    def fetch(after: int) -> _Page:
        through = min(after + PAGE, part.through)
        values = {"after": after, "through": through, **patterns}
        connection = idle.get()
        try:
            cursor = connection.execute(statement.text, [values[name] for name in statement.names], binary=True)
            lines, leaves, count = cursor.fetchone() or (None, None, 0)
        finally:
            idle.put(connection)
        return _Page(through, _bytes(lines), _bytes(leaves), int(str(count)))

    with ThreadPoolExecutor(len(connections)) as threads:
        ahead: deque[Future[_Page]] = deque()
        starts = range(part.after, part.through, PAGE)
        try:
            for i in range(len(starts)):
                ahead.extend(threads.submit(fetch, start) for start in starts[i + len(ahead) : i + _AHEAD])
                page = ahead.popleft().result()
                yield page
                if progress is not None:
                    progress(page.through - part.after, part.through - part.after)
        finally:
            for future in ahead:
                future.cancel()


def _root(leaves: bytes) -> bytes:
    """The root of the tree over some leaves; from level to level a hash that has none beside it goes up as it is."""
    while len(leaves) > 32:
        pairs = [leaves[i : i + 64] for i in range(0, len(leaves), 64)]
        leaves = b"".join([sha256(b"\1" + pair).digest() if len(pair) == 64 else pair for pair in pairs])
    return leaves


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""


def _patterns(selection: Selection) -> dict[str, object]:
    """The values of the conditions of `_concerning`.

    Canonical JSON has no white space, and a quotation mark inside of a text has a backslash before it: so a key and its
    number are found by their text alone, which costs a fraction of what taking the JSON apart does.
    """
    values: dict[str, object] = {}
    for i, each in enumerate(selection.concerning):
        values[f"number_{i}"] = f":{each.number}"
        values[f"data_{i}"] = f'"({"|".join(map(re.escape, each.keys))})":{each.number}[],}}]'
        values[f"actor_{i}"] = f'"actor":{each.number}[,}}]' if each.acted else None
        values[f"position_{i}"] = each.position
    return values


def _log_lines(selection: Selection) -> Statement:
    c = events.c
    # The keys stand in the order of their names, so that the line is canonical JSON as a whole.
    line = sa.func.concat(
        inline('{"data":'),
        sa.func.coalesce(sa.cast(c.data, sa.Text), inline("null")),
        inline(',"data_hash":"') + _hex(c.data_hash) + inline('"'),
        inline(',"leaf_hash":"'),
        _hex(c.leaf_hash),
        inline('","metadata":'),
        sa.cast(c.metadata, sa.Text),
        inline(',"position":'),
        c.position,
        inline(',"recorded_at":"'),
        rfc3339_sql(c.recorded_at),
        inline('"'),
        inline(',"salt":"') + _hex(c.salt) + inline('"'),
        inline(',"stream":"'),
        c.stream,
        inline('","type":"'),
        c.type,
        inline('","version":'),
        c.version,
        inline("}\n"),
    )
    if selection.concerning:
        return _page_of(line, events, selection)
    signed = checkpoints.c
    note = (
        inline('{"checkpoint":'),
        sa.cast(sa.func.to_json(signed.note), sa.Text),
        inline(',"signed_at":"'),
        rfc3339_sql(signed.signed_at),
        inline('"}\n'),
    )
    with_note = sa.func.concat(line, sa.case((signed.size.is_not(None), sa.func.concat(*note))))
    return _page_of(with_note, events.outerjoin(checkpoints, signed.size == c.position), selection)


def _cloudevent_lines(selection: Selection, origin: str) -> Statement:
    c = events.c
    told = c.metadata
    line = sa.func.concat(
        inline('{"specversion":"1.0","id":'),
        sa.cast(told[inline("event_id")], sa.Text),
        inline(f',"source":"//{quote(origin, safe="/:@!$&()*,;=~")}","type":"minutebook.'),
        c.type,
        inline('","subject":"'),
        c.stream,
        inline('","time":"'),
        rfc3339_sql(c.recorded_at),
        # Of one length, so that the order of the texts is that of the numbers.
        inline('","sequence":"'),
        sa.func.lpad(sa.cast(c.position, sa.Text), sa.literal_column("19"), inline("0")),
        inline('","streamversion":"'),
        c.version,
        inline('","schemaversion":'),
        sa.func.coalesce(told[inline("schema")].astext, inline("1")),
        inline(',"correlationid":'),
        sa.cast(told[inline("correlation_id")], sa.Text),
        sa.func.concat(inline(',"actor":"') + told[inline("actor")].astext + inline('"')),
        inline(',"leafhash":"'),
        _hex(c.leaf_hash),
        inline('"'),
        sa.func.coalesce(
            inline(',"datacontenttype":"application/json","data":') + sa.cast(c.data, sa.Text), inline(',"erased":true')
        ),
        inline("}\n"),
    )
    return _page_of(line, events, selection)


def _page_of(line: sa.ColumnElement[str], source: sa.FromClause, selection: Selection) -> Statement:
    """One row: the lines of the events with `:after < position <= :through`, their leaf hashes, and their number."""
    c = events.c
    after, through = (sa.bindparam(name, type_=sa.BigInteger) for name in ("after", "through"))
    lines = sa.func.string_agg(line, aggregate_order_by(inline(""), c.position), type_=sa.Text)
    empty = sa.literal_column("''::bytea", BYTEA)
    leaves = sa.func.string_agg(c.leaf_hash, aggregate_order_by(empty, c.position), type_=BYTEA)
    page = sa.select(utf8(lines), leaves, sa.func.count()).select_from(source)
    page = page.where(c.position > after, c.position <= through)
    for i in range(len(selection.concerning)):
        page = page.where(_concerning(i))
    return Statement(page)


def _concerning(i: int) -> sa.ColumnElement[bool]:
    earlier = events.alias("earlier")
    in_stream = sa.exists().where(
        earlier.c.stream == events.c.stream, earlier.c.version < events.c.version, _itself(earlier, i)
    )
    return sa.or_(_itself(events, i), sa.and_(events.c.version > sa.literal_column("1"), in_stream))


def _itself(event: sa.FromClause, i: int) -> sa.ColumnElement[bool]:
    def holds(column: sa.ColumnElement[object], name: str) -> sa.ColumnElement[bool]:
        text = sa.cast(column, sa.Text)
        # Looking for a text takes a tenth of the time of matching a pattern.
        number = sa.func.strpos(text, sa.bindparam(f"number_{i}", type_=sa.Text)) > sa.literal_column("0")
        return sa.and_(number, text.op("~")(sa.bindparam(f"{name}_{i}", type_=sa.Text)))

    return sa.or_(
        holds(event.c.data, "data"),
        holds(event.c.metadata, "actor"),
        event.c.position == sa.bindparam(f"position_{i}", type_=sa.BigInteger),
    )


def _hex(value: sa.ColumnElement[bytes]) -> sa.ColumnElement[str]:
    return sa.func.encode(value, inline("hex"))


def _one(connection: _Connection, statement: Statement, **values: object) -> object:
    row = connection.execute(statement.text, [values[name] for name in statement.names]).fetchone()
    return row[0] if row else None
