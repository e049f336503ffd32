"""Roles in a Postgres of one's own: the server's, which can append to the log and not change it, and the auditors'.

The triggers refuse changes of the log to everybody, but whoever owns the tables can take the triggers away. A server
that connects as another role than the owner cannot, whatever becomes of it: so this is the second line behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from eventstore.errors import LogError, LogUnavailable

# What the server does to the log's own tables. Every other table is a read model, which it keeps up.
_LOG: Mapping[str, tuple[str, ...]] = {
    "events": ("SELECT", "INSERT"),
    "commands": ("SELECT", "INSERT"),
    "log_head": ("SELECT", "UPDATE"),
    "node_leases": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "tree_hashes": ("SELECT", "INSERT"),
    "checkpoints": ("SELECT", "INSERT"),
    "log_key": ("SELECT", "INSERT"),
    # Where Alembic keeps what it has done.
    "alembic_version": ("SELECT",),
}
_MODEL = ("SELECT", "INSERT", "UPDATE", "DELETE")
_READ = ("SELECT",)
# What must stay as it was recorded, and by which rights it could be changed.
_IMMUTABLE = ("events", "checkpoints")
_CHANGING = ("UPDATE", "DELETE", "TRUNCATE", "TRIGGER")

_Connection = psycopg.Connection[tuple[Any, ...]]


def grant(conninfo: str, models: Sequence[str], role: str, reader: str | None = None) -> dict[str, tuple[str, ...]]:
    """Gives `role` what a server needs of the log and its read models, and `reader` what an auditor does; nothing else.

    Rights that they have on these tables beyond that are taken from them. Returns what `role` has now, by the table.
    Raises `LogError`, and then nothing has changed, if one of them does not exist or could change the log all the
    same: as the tables' owner, as a superuser, or by a role that it is a member of.
    """
    wanted = {**_LOG, **dict.fromkeys(models, _MODEL)}
    with _connected(conninfo) as connection, connection.transaction():
        _require_owner(connection, "grant")
        _grant(connection, role, wanted)
        if reader is not None:
            _grant(connection, reader, dict.fromkeys(wanted, _READ))
            # For the read models as they were at some time, which an auditor makes in tables of the session's own.
            _run(connection, "GRANT TEMPORARY ON DATABASE {} TO {}", connection.info.dbname, reader)
    return wanted


def require_owner(conninfo: str, what: str) -> None:
    """Raises `LogError`, which says that `what` needs the owner of the log's tables, if this connection is not its."""
    with _connected(conninfo) as connection:
        _require_owner(connection, what)


@contextmanager
def _connected(conninfo: str) -> Iterator[_Connection]:
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise LogUnavailable(f"the database cannot be reached: {error}") from error


def _require_owner(connection: _Connection, what: str) -> None:
    row = connection.execute(
        "SELECT pg_has_role(relowner, 'USAGE'), relowner::regrole::text, current_user FROM pg_class "
        "WHERE oid = to_regclass('events')"
    ).fetchone()
    if row is None:
        raise LogError("the database has no log yet, or an older one: run `minutebook migrate`")
    may, owner, user = row
    if not may:
        raise LogError(f"`{what}` must connect as the role that owns the log's tables, which is {owner}, not as {user}")


def _grant(connection: _Connection, role: str, wanted: Mapping[str, tuple[str, ...]]) -> None:
    _check_role(connection, role)
    _run(connection, "GRANT CONNECT ON DATABASE {} TO {}", connection.info.dbname, role)
    schema = str(_one(connection, "SELECT current_schema()"))
    _run(connection, "REVOKE ALL ON SCHEMA {} FROM {}", schema, role)
    _run(connection, "GRANT USAGE ON SCHEMA {} TO {}", schema, role)
    for table, privileges in wanted.items():
        _run(connection, "REVOKE ALL ON {} FROM {}", table, role)
        _run(connection, f"GRANT {', '.join(privileges)} ON {{}} TO {{}}", table, role)
    left = connection.execute(_STILL_MAY, [list(_IMMUTABLE), list(_CHANGING), role]).fetchone()
    if left is not None:
        raise LogError(
            f"{role} has the right to {' '.join(left)} all the same, as everybody has or by a role that it is a member "
            "of: take that away first"
        )


def _check_role(connection: _Connection, role: str) -> None:
    if not _one(connection, "SELECT count(*) FROM pg_roles WHERE rolname = %s", role):
        raise LogError(f"there is no role {role}: make it first, as in CREATE ROLE {role} LOGIN")
    if _one(connection, _COULD_CHANGE, role):
        raise LogError(
            f"{role} owns the log's tables, their schema or their database, or could become who does: as a superuser, "
            "by CREATEROLE, by programs or files of the database's machine, or as a member. Take another role, with "
            "no such rights"
        )


# Every role that a role can become by SET ROLE, itself included; it need not inherit their rights to use them.
_BECOMES = "FROM pg_roles AS given JOIN pg_roles AS r ON pg_has_role(given.oid, r.oid, 'MEMBER')"
_COULD_CHANGE = f"""
    SELECT count(*) {_BECOMES}
        CROSS JOIN pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        JOIN pg_database AS d ON d.datname = current_database()
    WHERE given.rolname = %s AND c.oid = to_regclass('events')
        AND (r.rolsuper OR r.rolcreaterole OR r.oid IN (c.relowner, n.nspowner, d.datdba)
            OR r.rolname IN ('pg_execute_server_program', 'pg_write_server_files'))
"""
_STILL_MAY = f"""
    SELECT privilege, name {_BECOMES} CROSS JOIN unnest(%s::text[]) AS name CROSS JOIN unnest(%s::text[]) AS privilege
    WHERE given.rolname = %s AND (has_table_privilege(r.oid, name, privilege)
        OR privilege = 'UPDATE' AND has_any_column_privilege(r.oid, name, privilege))
"""


def _one(connection: _Connection, query: LiteralString, *values: str) -> Any:
    row = connection.execute(query, values).fetchone()
    return row[0] if row else None


def _run(connection: _Connection, statement: str, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
