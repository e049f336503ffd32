"""The plain way: one INSERT of the same row a commit, through a pool of 10 connections.

Positions come from a sequence, so readers that remember a position can miss events; nothing is hashed, nothing
projected, nobody notified.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from bench.appenders import Appender, message
from bench.appenders.pooled import measure_statement
from bench.load import Load, Measured
from eventstore.ids import new_id

_TABLE = """
    CREATE TABLE events (
        position bigserial PRIMARY KEY,
        stream text COLLATE "C" NOT NULL,
        version bigint NOT NULL,
        type text COLLATE "C" NOT NULL,
        data json NOT NULL,
        metadata json NOT NULL,
        recorded_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (stream, version)
    )
"""
_INSERT = (
    "INSERT INTO events (stream, version, type, data, metadata) "
    "VALUES ($1::text, $2, $3::text, $4::text::json, $5::text::json)"
)


def _prepare(conninfo: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(_TABLE)


def _parameters() -> list[object]:
    return [f"message-{new_id()}", 1, "MessageSent", message.data().decode(), message.metadata().decode()]


def _measure(conninfo: str, load: Load, ready: Callable[[], None]) -> Measured:
    return measure_statement(conninfo, load, ready, _INSERT, _parameters)


def _measure_by_default(conninfo: str, load: Load, ready: Callable[[], None]) -> Measured:
    return measure_statement(conninfo, load, ready, _INSERT, _parameters, autocommit=False)


BY_DEFAULT = Appender("INSERT a commit, psycopg pool", _prepare, _measure_by_default)
AUTOCOMMIT = Appender("the same in autocommit mode", _prepare, _measure)
