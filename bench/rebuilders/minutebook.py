"""Ours: all projections, by their own set-based statements, indexes and the swap with the live tables included."""

from __future__ import annotations

import psycopg

import projections
from bench.history import History
from bench.rebuilders import Rebuilder, WrongResult
from bench.rounds import OURS
from eventstore.rebuild import rebuild


def _prepare(_: str) -> None:
    """Nothing: a rebuild begins with fresh tables."""


def _rebuild(conninfo: str) -> int:
    return rebuild(conninfo, projections.ALL)


def _check(conninfo: str, history: History) -> None:
    with psycopg.connect(conninfo) as connection:
        found = connection.execute("SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM dms)").fetchone()
    if found != (history.messages, history.dms):
        raise WrongResult(f"rebuilt {found} messages and DMs of {history}")


REBUILDER = Rebuilder(OURS, _prepare, _rebuild, _check)
