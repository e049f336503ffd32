"""The peers' tables, the world in them, and how their processes are started.

A peer keeps rows and nothing else: no log, no hashes, no read models beside its tables, one index fewer than ours
on its messages.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import psycopg

from bench.servers import ACCOUNTS, ARCHIVE, ARCHIVED, CHANNELS, TEXT, Running, username
from bench.servers.process import free_port, running

CONNINFO_VARIABLE = "MINUTEBOOK_BENCH_CONNINFO"
COUNT_MESSAGES = "SELECT count(*) FROM messages"

_TABLES = """
    CREATE TABLE accounts (
        account_id bigint PRIMARY KEY, username text NOT NULL UNIQUE, token text NOT NULL UNIQUE
    );
    CREATE TABLE channels (
        channel_id bigint PRIMARY KEY, name text NOT NULL UNIQUE
    );
    CREATE TABLE members (
        account_id bigint NOT NULL, channel_id bigint NOT NULL, PRIMARY KEY (account_id, channel_id)
    );
    CREATE TABLE messages (
        message_id bigserial PRIMARY KEY,
        channel_id bigint NOT NULL,
        sender_id bigint NOT NULL,
        text text NOT NULL,
        sent_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE INDEX ON messages (channel_id, message_id);
"""
_ARCHIVE = """
    INSERT INTO messages (channel_id, sender_id, text)
    SELECT (SELECT channel_id FROM channels WHERE name = %s), i %% %s, %s FROM generate_series(1, %s) AS i
"""


@contextlib.contextmanager
def serve(
    command: Callable[[int], Sequence[str]], conninfo: str, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Makes the world and runs what the command is for a port, in one process."""
    tokens, port = _make(conninfo), free_port()
    environment = {CONNINFO_VARIABLE: conninfo, **(environment or {})}
    with running(command(port), port, folder / "server.log", environment) as pid:
        yield Running(pid, port, tokens)


def on_uvicorn(app: str) -> Callable[[int], Sequence[str]]:
    """The command that runs an app (`module:factory`) on uvicorn, with uvloop and httptools and no access log."""
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    command = [sys.executable, "-m", "uvicorn", "--factory", app, "--host", "127.0.0.1", *options, "--port"]
    return lambda port: [*command, str(port)]


def own_conninfo() -> str:
    """The database of the server that this process is."""
    return os.environ[CONNINFO_VARIABLE]


def _make(conninfo: str) -> tuple[str, ...]:
    tokens = tuple(str(uuid4()) for _ in range(ACCOUNTS))
    channels = list(enumerate((*CHANNELS, ARCHIVE)))
    members = [(account, channel) for account in range(ACCOUNTS) for channel, _ in channels]
    with psycopg.connect(conninfo, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(_TABLES)
        accounts = [(number, username(number), token) for number, token in enumerate(tokens)]
        cursor.executemany("INSERT INTO accounts VALUES (%s, %s, %s)", accounts)
        cursor.executemany("INSERT INTO channels VALUES (%s, %s)", channels)
        cursor.executemany("INSERT INTO members VALUES (%s, %s)", members)
        cursor.execute(_ARCHIVE, [ARCHIVE, ACCOUNTS, TEXT, ARCHIVED])
        cursor.execute("ANALYZE")
    return tokens
