"""A fold in Python: events over a server-side cursor, each decoded, messages into a table by COPY.

In its favour: it makes one read model (messages in channels) where ours makes all, its indexes are made when the
rows are in, and what was deleted is taken out with one statement at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg

from bench.history import History
from bench.rebuilders import Rebuilder, WrongResult
from chat.events import DirectMessageSent, MessageDeleted, MessageSent

_AT_ONCE = 5_000
_TABLE = """
    DROP TABLE IF EXISTS folded;
    CREATE TABLE folded (
        message_id bigint NOT NULL, channel_id bigint NOT NULL, sender_id bigint NOT NULL,
        text text NOT NULL, sent_at timestamptz NOT NULL
    )
"""
_INDEXES = """
    ALTER TABLE folded ADD PRIMARY KEY (message_id);
    CREATE INDEX ON folded (channel_id, message_id);
    CREATE INDEX ON folded (sender_id, message_id)
"""
_DECODERS = {kind.__name__: msgspec.json.Decoder(kind) for kind in (MessageSent, DirectMessageSent, MessageDeleted)}
_COPY = "COPY folded (message_id, channel_id, sender_id, text, sent_at) FROM STDIN (FORMAT binary)"


def _prepare(conninfo: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(_TABLE)


def _rebuild(conninfo: str) -> int:
    with psycopg.connect(conninfo) as source, psycopg.connect(conninfo, autocommit=True) as target:
        fold = _Fold()
        with target.cursor() as cursor, cursor.copy(_COPY) as copy:
            copy.set_types(["int8", "int8", "int8", "text", "timestamptz"])
            for row in fold.messages(source):
                copy.write_row(row)
        target.execute(_INDEXES.encode())
        target.execute("DELETE FROM folded WHERE message_id = ANY(%s)", [fold.deleted])
        target.execute("ANALYZE folded")
        return fold.count


class _Fold:
    def __init__(self) -> None:
        self.count = 0
        self.deleted: list[int] = []

    def messages(self, source: psycopg.Connection[Any]) -> Iterator[tuple[object, ...]]:
        with source.cursor("log", binary=True) as cursor:
            cursor.itersize = _AT_ONCE
            cursor.execute(
                "SELECT position, type, convert_to(data::text, 'UTF8'), recorded_at FROM events ORDER BY position"
            )
            for position, kind, data, recorded_at in cursor:
                self.count += 1
                decoder = _DECODERS.get(kind)
                event = decoder.decode(data) if decoder else None
                if isinstance(event, MessageSent):
                    yield position, event.channel_id, event.sender_id, event.text, recorded_at
                elif isinstance(event, MessageDeleted):
                    self.deleted.append(event.message_id)


def _check(conninfo: str, history: History) -> None:
    with psycopg.connect(conninfo) as connection:
        found = connection.execute("SELECT count(*) FROM folded").fetchone()
    if found != (history.messages,):
        raise WrongResult(f"folded {found} messages of {history}")


REBUILDER = Rebuilder("Python fold and COPY", _prepare, _rebuild, _check)
