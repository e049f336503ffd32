"""Erasure: the one narrow way in which the data of recorded events goes.

An event of the type `ERASED` names positions, and the append that records it empties data and salt of the events there,
in the same statement; the digest of both stays in their place, so every leaf hash can still be computed. The database
refuses every other change of an event (`log_0003`), and that one too where no such event names the position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg
import sqlalchemy as sa
from psycopg import sql

from eventstore import merkle
from eventstore.errors import LogUnavailable
from eventstore.statements import inline
from eventstore.tables import events

ERASED = "Erased"
# How many positions one such event may name: they are emptied while all other appends wait.
MAX_POSITIONS = 2_000

# Called with how many tables are done, and how many there are.
Progress = Callable[[int, int], None]

# Where the planner's samples are.
_SAMPLES = "pg_statistic"
# Columns of which there are samples, each with the type that it has.
_SAMPLED = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod)
        || CASE WHEN a.attcollation <> t.typcollation THEN ' COLLATE ' || a.attcollation::regcollation ELSE '' END
    FROM pg_stats AS s JOIN pg_attribute AS a USING (attname) JOIN pg_type AS t ON t.oid = a.atttypid
    WHERE s.schemaname = current_schema() AND s.tablename = %s AND a.attrelid = to_regclass(quote_ident(s.tablename))
"""


def named_positions(source: sa.FromClause) -> sa.Select[int]:
    """The positions that the source's events of the type name; the source has `type` and `data`."""
    # Not by a join: every row of it would carry the data along, with all the other positions in it.
    named = sa.func.json_array_elements_text(source.c.data[inline("positions")])
    return sa.select(sa.cast(named, sa.BigInteger)).where(source.c.type == inline(ERASED))


def emptied(appended: sa.CTE) -> sa.CTE:
    """The step of an append that empties the events which it names."""
    c = events.c
    kept = merkle.data_hash_sql(c.salt, sa.cast(c.data, sa.Text))
    update = (
        sa.update(events)
        # What was emptied before has its digest already.
        .where(c.position.in_(named_positions(appended)), c.data.is_not(None))
        .values(data=sa.null(), salt=sa.null(), data_hash=kept)
    )
    return update.returning(c.position).cte("emptied")


def scrub(conninfo: str, models: Sequence[str], progress: Progress | None = None, *, rewrite: bool = False) -> None:
    """Takes what was erased out of where the database keeps it on: dead rows, and the planner's samples of columns.

    `models` are the tables that are made of the log. It needs the tables' owner. What a transaction that runs now may
    still look at stays until the next vacuum, autovacuum's among them. Without `rewrite`, which writes the tables anew
    under a lock that keeps everybody out, the bytes of dead rows may stay in their files, in space that will be used
    again. Raises `LogUnavailable`.
    """
    tables = [events.name, *models, *([_SAMPLES] if rewrite else [])]
    how = sql.SQL("FULL, ANALYZE" if rewrite else "ANALYZE")
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            for done, name in enumerate(tables, start=1):
                table = sql.Identifier(name)
                connection.execute(sql.SQL("VACUUM ({}) {}").format(how, table))
                if (
                    name != _SAMPLES
                    and connection.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(table)).fetchone() is None
                ):
                    _forget_samples(connection, name)
                if progress is not None:
                    progress(done, len(tables))
    except psycopg.OperationalError as error:
        raise LogUnavailable(f"what is erased could not be taken out of dead rows and samples: {error}") from error


def _forget_samples(connection: psycopg.Connection[tuple[object, ...]], name: str) -> None:
    """Drops the samples of an empty table, which ANALYZE leaves as they were: giving a column its type anew does."""
    for column, kind in connection.execute(_SAMPLED, [name]).fetchall():
        change = sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE {}")
        connection.execute(change.format(sql.Identifier(name), sql.Identifier(str(column)), sql.SQL(str(kind))))
