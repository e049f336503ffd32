"""Leaf hashes of the log's Merkle tree (RFC 6962, section 2.1).

Leaf `i` is event `i`: `SHA-256(0x00 || entry)`. The entry is the event's header as canonical JSON, with
`SHA-256(salt || data)` in place of the data, so that data can be erased and the tree still holds:

    {"data_hash":"<hex>","metadata":{...},"position":7,"recorded_at":"2026-01-31T12:00:00.000000Z",
     "stream":"message-...","type":"MessageSent","version":1}

without the line break. The database computes the leaf hash as it appends, since only there the position and the
time are known; `leaf_hash` computes the same from an event's parts, for everyone who checks. A test holds both equal.
Stream names and types are of `NAME_PATTERN`, so they need no escaping inside the entry.
"""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from hashlib import sha256

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA

from eventstore.statements import inline

NAME_PATTERN = re.compile(r"[A-Za-z0-9_.:/-]{1,200}")
SALT_BYTES = 16


def rfc3339(moment: datetime) -> str:
    """The moment in UTC with microseconds, as entries and answers show it: `2026-01-31T12:00:00.000000Z`."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[:-6] + "Z"


def entry(
    *,
    position: int,
    stream: str,
    version: int,
    event_type: str,
    metadata: bytes,
    recorded_at: datetime,
    data_hash: bytes,
) -> bytes:
    """The canonical header of an event, which is what its leaf hash covers."""
    return (
        f'{{"data_hash":"{data_hash.hex()}","metadata":{metadata.decode()},"position":{position},'
        f'"recorded_at":"{rfc3339(recorded_at)}","stream":"{stream}","type":"{event_type}","version":{version}}}'
    ).encode()


def data_hash(salt: bytes, data: bytes) -> bytes:
    """The salted digest that stands in the entry for the data (32 bytes)."""
    return sha256(salt + data).digest()


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf of the tree (32 bytes)."""
    return sha256(b"\0" + entry).digest()


def entry_sql(
    *,
    position: sa.ColumnElement[int],
    stream: sa.ColumnElement[str],
    version: sa.ColumnElement[int],
    event_type: sa.ColumnElement[str],
    metadata: sa.ColumnElement[str],
    recorded_at: sa.ColumnElement[str],
    data_hash: sa.ColumnElement[bytes],
) -> sa.ColumnElement[bytes]:
    """`entry` as an SQL expression; `metadata` as text, `recorded_at` by `rfc3339_sql`."""
    # `||` in place of concat(), which looks up how to print each of its arguments each time.
    parts = (
        inline('{"data_hash":"'),
        sa.func.encode(data_hash, inline("hex"), type_=sa.Text),
        inline('","metadata":'),
        metadata,
        inline(',"position":'),
        sa.cast(position, sa.Text),
        inline(',"recorded_at":"'),
        recorded_at,
        inline('","stream":"'),
        stream,
        inline('","type":"'),
        event_type,
        inline('","version":'),
        sa.cast(version, sa.Text),
        inline("}"),
    )
    return utf8(functools.reduce(lambda left, right: left.op("||")(right), parts))


def recorded_entry_sql(recorded: sa.FromClause) -> sa.ColumnElement[bytes]:
    """The entry of rows that have the log's columns; a digest that was kept counts only where the data was erased."""
    c = recorded.c
    return entry_sql(
        position=c.position,
        stream=c.stream,
        version=c.version,
        event_type=c.type,
        metadata=sa.cast(c.metadata, sa.Text),
        recorded_at=rfc3339_sql(c.recorded_at),
        data_hash=sa.case((c.data.is_(None), c.data_hash), else_=data_hash_sql(c.salt, sa.cast(c.data, sa.Text))),
    )


def data_hash_sql(salt: sa.ColumnElement[bytes], data: sa.ColumnElement[str]) -> sa.ColumnElement[bytes]:
    """`data_hash` as an SQL expression; `data` as text."""
    return sa.func.sha256(salt.op("||")(utf8(data)), type_=BYTEA)


def leaf_hash_sql(entry: sa.ColumnElement[bytes]) -> sa.ColumnElement[bytes]:
    """`leaf_hash` as an SQL expression."""
    return sa.func.sha256(sa.literal_column(r"'\x00'::bytea").op("||")(entry), type_=BYTEA)


def rfc3339_sql(moment: sa.ColumnElement[datetime]) -> sa.ColumnElement[str]:
    """`rfc3339` as an SQL expression."""
    return sa.func.to_char(sa.func.timezone(inline("UTC"), moment), inline('YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))


def utf8(text: sa.ColumnElement[str]) -> sa.ColumnElement[bytes]:
    """The bytes of a text, as an SQL expression."""
    return sa.func.convert_to(text, inline("UTF8"), type_=BYTEA)
