"""The database as tests look at it from beside the house: the tables' rows, and the read models made once more."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

import projections
from eventstore.projection import Projection, log_range, types_in_range
from tests.fold import Tables

Connection = psycopg.Connection[tuple[Any, ...]]

READ_MODELS = [table.name for projection in projections.ALL for table in projection.tables]
LOG = ["events", "commands", "tree_hashes", "checkpoints", "log_key"]


def connect(conninfo: str) -> Connection:
    """A connection of the test's own, on which every statement is a transaction; to be closed."""
    return psycopg.connect(conninfo, autocommit=True)


def rows(connection: Connection, query: str, **values: object) -> list[tuple[Any, ...]]:
    """All rows of a query with `%(name)s` for its values."""
    return connection.execute(query.encode(), values).fetchall()


def run(connection: Connection, statement: str, *names: str) -> None:
    """Runs a statement with names of tables or the like for its `{}`."""
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def read_models(connection: Connection, schema: str = "public") -> Tables:
    """The rows of all read models, sorted, as they stand in a schema."""
    # In one snapshot, so that it is one state of the database while others write.
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return {name: sorted(rows(connection, f"SELECT * FROM {schema}.{name}")) for name in READ_MODELS}


class Beside:
    """The read models projected once more, from zero, into temporary tables that have the live ones' names."""

    def __init__(self, conninfo: str, models: Sequence[Projection] = projections.ALL) -> None:
        self.connection = connect(conninfo)
        self.connection.execute("SET TIME ZONE 'UTC'; SET jit = off")
        for name in READ_MODELS:
            run(self.connection, "CREATE TEMPORARY TABLE {} (LIKE public.{} INCLUDING ALL)", name, name)
        self._types = _compiled(types_in_range())
        self._changes = [
            (change.types, *_compiled(change.build(log_range()))) for model in models for change in model.changes
        ]

    def project(self, ranges: Iterable[tuple[int, int]]) -> Tables:
        """What the tables hold when the changes ran over the ranges (after, through], one after the other."""
        for name in READ_MODELS:
            run(self.connection, "DELETE FROM pg_temp.{}", name)
        for after, through in ranges:
            bounds = {"after": after, "through": through}
            with self.connection.transaction():
                text, constants = self._types
                present = {name for [name] in self.connection.execute(text.encode(), {**constants, **bounds})}
                for types, text, constants in self._changes:
                    # As a rebuild does, and an append.
                    if types & present:
                        self.connection.execute(text.encode(), {**constants, **bounds})
        return read_models(self.connection, "pg_temp")

    def close(self) -> None:
        """Drops the tables."""
        self.connection.close()


def cut(head: int, places: Iterable[int]) -> list[tuple[int, int]]:
    """The ranges that make up the log from its beginning to its head, cut at these places."""
    edges = sorted({0, head, *(place for place in places if 0 < place < head)})
    return list(itertools.pairwise(edges))


def empty(connection: Connection) -> None:
    """Makes a database as new, which nothing in the house can do: quicker than a fresh copy of the template."""
    for table in ("events", "checkpoints"):
        run(connection, f"ALTER TABLE {table} DISABLE TRIGGER {table}_immutable")
    run(connection, f"TRUNCATE {', '.join(['public.{}'] * len(LOG + READ_MODELS))}", *LOG, *READ_MODELS)
    run(connection, "UPDATE log_head SET position = 0, recorded_at = to_timestamp(0)")
    for table in ("events", "checkpoints"):
        run(connection, f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_immutable")


class Outage:
    """Ends connections to a database, and keeps new ones out."""

    def __init__(self, cluster: str, database: str) -> None:
        self._cluster = cluster
        self._name = str(conninfo_to_dict(database)["dbname"])

    def end_connections(self) -> None:
        """Ends all connections of this moment."""
        with connect(self._cluster) as connection:
            rows(
                connection,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %(name)s",
                name=self._name,
            )

    def end_listeners(self) -> None:
        """Ends the connections that listen for notifications, and returns when they are gone."""
        with connect(self._cluster) as connection:
            ended = rows(
                connection,
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = %(name)s AND query LIKE 'LISTEN%%'",
                name=self._name,
            )
        assert ended

    def keep_new_ones_out(self) -> None:
        """Nobody can connect, until `end`; who is connected stays so."""
        with connect(self._cluster) as connection:
            run(connection, "ALTER DATABASE {} ALLOW_CONNECTIONS false", self._name)

    def begin(self) -> None:
        """Nobody is connected or can be, until `end`."""
        self.keep_new_ones_out()
        self.end_connections()

    def end(self) -> None:
        """Everybody may connect again."""
        with connect(self._cluster) as connection:
            run(connection, "ALTER DATABASE {} ALLOW_CONNECTIONS true", self._name)


def _compiled(element: sa.ClauseElement) -> tuple[str, dict[str, Any]]:
    """A statement as psycopg takes it, and the values that it brings along."""
    compiled = element.compile(dialect=PGDialect_psycopg())  # type: ignore[no-untyped-call]
    return str(compiled), {name: value for name, value in compiled.params.items() if value is not None}
