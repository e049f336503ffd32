"""Ours, by the projections' own set-based statements, indexes and the swap with the live tables included.

All projections, and those of messages in channels alone, as the fold in Python makes.
"""

from __future__ import annotations

import psycopg

import projections
from bench.history import History
from bench.rebuilders import Rebuilder, WrongResult
from bench.rounds import OURS
from eventstore.rebuild import rebuild
from projections import messages


def _prepare(_: str) -> None:
    """Nothing: a rebuild begins with fresh tables."""


def _rebuild(conninfo: str) -> int:
    return rebuild(conninfo, projections.ALL).position


def _rebuild_messages(conninfo: str) -> int:
    return rebuild(conninfo, [messages.projection]).position


def _check(conninfo: str, history: History) -> None:
    with psycopg.connect(conninfo) as connection:
        found = connection.execute("SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM dms)").fetchone()
    if found != (history.messages, history.dms):
        raise WrongResult(f"rebuilt {found} messages and DMs of {history}")


def _check_messages(conninfo: str, history: History) -> None:
    with psycopg.connect(conninfo) as connection:
        found = connection.execute("SELECT count(*) FROM messages").fetchone()
    if found != (history.messages,):
        raise WrongResult(f"rebuilt {found} messages of {history}")


REBUILDER = Rebuilder(OURS, _prepare, _rebuild, _check)
MESSAGES = Rebuilder(f"{OURS}, messages alone", _prepare, _rebuild_messages, _check_messages)
