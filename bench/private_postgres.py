"""The Postgres of one run: private, in a temporary folder, durable, with a database for each contestant."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from eventstore.embedded import EmbeddedPostgres

_CONFLICT = re.compile(
    rb"ERROR: +(?:duplicate key value|could not serialize|deadlock detected|canceling statement due to lock)"
)
_DURABLE = ("fsync", "synchronous_commit", "full_page_writes")


@dataclass(frozen=True)
class PrivatePostgres:
    """A running Postgres; `sync_ms` is what it takes to bring one page to its disk, the least that a commit costs."""

    conninfo: str
    sync_ms: float
    log: Path

    def make_database(self, name: str) -> str:
        """Makes an empty database and returns how to connect to it."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return make_conninfo(self.conninfo, dbname=name)

    def conflicts(self) -> int:
        """How many statements it has refused so far since another one was faster; its log tells of each."""
        return len(_CONFLICT.findall(self.log.read_bytes()))

    def settle(self) -> None:
        """Writes out what earlier measurements left to be written, so that none pays for another."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            connection.execute("CHECKPOINT")

    def describe(self) -> dict[str, str]:
        """The server's version and those settings on which durability hangs."""
        with psycopg.connect(self.conninfo) as connection:
            names = ("server_version", *_DURABLE, "shared_buffers", "max_wal_size")
            return {name: _setting(connection, name) for name in names}


@contextlib.contextmanager
def private_postgres(parent: Path | None = None) -> Iterator[PrivatePostgres]:
    """Runs a Postgres in a new folder below `parent` (or where temporary files go), which is removed at the end.

    Raises RuntimeError if it would lose commits: then a benchmark says nothing.
    """
    folder = Path(tempfile.mkdtemp(prefix="minutebook-bench-", dir=parent))
    postgres = EmbeddedPostgres(folder)
    try:
        running = PrivatePostgres(postgres.start(), _sync_ms(folder), folder / "postgres.log")
        settings = running.describe()
        weak = [f"{name} = {settings[name]}" for name in _DURABLE if settings[name] != "on"]
        if weak:
            raise RuntimeError(f"commits are not durable: {', '.join(weak)}")
        yield running
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _setting(connection: psycopg.Connection[tuple[object, ...]], name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    return str(row[0]) if row else ""


def _sync_ms(folder: Path, times: int = 50) -> float:
    """The median time of writing 8 KiB to a file in `folder` and syncing it, in milliseconds."""
    taken: list[float] = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(times):
            began = time.perf_counter()
            file.seek(0)
            file.write(bytes(8192))
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    return median(taken) * 1000
