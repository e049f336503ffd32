"""One state of the database, seen by several connections at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

_BEGIN = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


def share_snapshot(connections: Sequence[psycopg.Connection[Any]]) -> None:
    """Begins a transaction on each that sees the database as it stands now, whatever is committed from now on.

    The connections are in autocommit mode; none of them can change anything until its transaction ends.
    """
    first, *others = connections
    first.execute(_BEGIN)
    [(name,)] = first.execute("SELECT pg_export_snapshot()").fetchall()
    for other in others:
        other.execute(_BEGIN)
        other.execute(f"SET TRANSACTION SNAPSHOT '{name}'".encode())
