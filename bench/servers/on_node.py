"""Node's own HTTP server with the npm package pg: a pool of 10, and a statement a request, prepared and committed."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from bench import npm
from bench.servers import Contestant, Running, store
from bench.servers.peers import COUNT_MESSAGES, serve

_PROGRAM = "with_postgres.js"
_PACKAGES = npm.Packages(Path(__file__).with_name("javascript"), [_PROGRAM])
_STATEMENTS = {
    "insert": store.INSERT,
    "channels_of": store.CHANNELS_OF,
    "newest": store.NEWEST,
    "accounts": store.ACCOUNTS,
    "channels": store.CHANNELS,
    "members": store.MEMBERS,
    "pool": store.POOL,
}


def prepared() -> list[Contestant]:
    """The contestant, once its packages are installed; says what is missing if it cannot take part."""
    problem = _PACKAGES.install()
    if problem:
        print(f"LEFT OUT: {SERVER.name}: {problem}")
    return [] if problem else [SERVER]


def versions() -> dict[str, str]:
    """The versions of Node and pg, as far as they are here."""
    return _PACKAGES.versions("pg")


def _serve(conninfo: str, folder: Path) -> AbstractContextManager[Running]:
    parts = conninfo_to_dict(conninfo)
    environment = {
        "PGHOST": str(parts["host"]),
        "PGPORT": str(parts.get("port", 5432)),
        "PGUSER": str(parts["user"]),
        "PGDATABASE": str(parts["dbname"]),
        "MINUTEBOOK_BENCH_STATEMENTS": json.dumps(_STATEMENTS),
        "NODE_ENV": "production",
    }
    program = str(_PACKAGES.folder / _PROGRAM)
    return serve(lambda port: [str(npm.node()), program, str(port)], conninfo, folder, environment)


SERVER = Contestant("Node, pg", _serve, COUNT_MESSAGES)
