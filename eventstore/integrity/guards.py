"""What the database itself does to keep the log as it is: its tables' shape, keys, checks, and triggers.

None of it stops somebody who may do everything in the database, which is what hashes and checkpoints are for. But a log
without its guards was opened up by somebody, or lost them on a move, and that is worth to be told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from eventstore.integrity.findings import Finding
from eventstore.tables import metadata

# Runs a statement that takes no parameters, and answers its rows.
Fetch = Callable[[str], list[tuple[Any, ...]]]


class Trigger(NamedTuple):
    """A trigger as the catalogue has it: its table and name, when it fires (`pg_trigger.tgtype`), and its function."""

    table: str
    name: str
    fires: int
    function: str


_BEFORE, _DELETE, _UPDATE, _TRUNCATE = 2, 8, 16, 32
TRIGGERS = (
    Trigger("events", "events_immutable", _BEFORE | _DELETE | _TRUNCATE, "events_refuse_change"),
    Trigger("events", "events_erasure", _UPDATE, "events_check_erasure"),
    Trigger("checkpoints", "checkpoints_immutable", _BEFORE | _DELETE | _UPDATE | _TRUNCATE, "events_refuse_change"),
)
# SHA-256 of what the functions do, with white space as one blank each: one that does nothing has the same name.
FUNCTIONS = {
    "events_refuse_change": "a264f7043426cb32b4e183abb5237c184e3b18494ab3140f4864d8b987850a24",
    "events_check_erasure": "059dbc598a38243b39bbc672208bed185004051bb8705eeb2388881043395f34",
}

# Ordinary tables, of which all rows are shown, that survive a crash, and whose rows all are their own: what stands in
# a child of a table is read with it, but none of its keys and triggers holds there.
_PLAIN = """
    SELECT relname::text FROM pg_class AS class
    WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relpersistence = 'p'
      AND NOT relrowsecurity AND NOT EXISTS (SELECT FROM pg_inherits WHERE class.oid IN (inhparent, inhrelid))
      AND NOT EXISTS (SELECT FROM pg_rewrite WHERE ev_class = class.oid)
"""
_COLUMNS = """
    SELECT relname::text, attname::text, format_type(atttypid, atttypmod), attnotnull
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = current_schema()::regnamespace AND attnum > 0 AND attgenerated = ''
"""
_KEYS = """
    SELECT class.relname::text, array_agg(attribute.attname::text ORDER BY key.ordinal)
    FROM pg_index AS index
    JOIN pg_class AS class ON class.oid = index.indrelid
    CROSS JOIN LATERAL unnest(index.indkey) WITH ORDINALITY AS key (attnum, ordinal)
    JOIN pg_attribute AS attribute ON attribute.attrelid = class.oid AND attribute.attnum = key.attnum
    WHERE class.relnamespace = current_schema()::regnamespace AND index.indisunique AND index.indisvalid
      AND index.indisready AND index.indpred IS NULL AND index.indexprs IS NULL AND key.ordinal <= index.indnkeyatts
    GROUP BY index.indexrelid, class.relname
"""
_CHECKS = """
    SELECT conrelid::regclass::text, conname::text, pg_get_expr(conbin, conrelid) FROM pg_constraint
    WHERE connamespace = current_schema()::regnamespace AND contype = 'c' AND convalidated
"""
_TRIGGERS = """
    SELECT class.relname::text, trigger.tgname::text, trigger.tgtype::integer, function.proname::text
    FROM pg_trigger AS trigger
    JOIN pg_class AS class ON class.oid = trigger.tgrelid
    JOIN pg_proc AS function ON function.oid = trigger.tgfoid AND function.pronamespace = class.relnamespace
    WHERE class.relnamespace = current_schema()::regnamespace AND trigger.tgenabled = 'A'
      AND trigger.tgqual IS NULL AND trigger.tgattr::text = ''
"""
_FUNCTIONS = r"""
    SELECT proname::text, encode(sha256(convert_to(regexp_replace(prosrc, '\s+', ' ', 'g'), 'UTF8')), 'hex')
    FROM pg_proc JOIN pg_language AS language ON language.oid = prolang
    WHERE pronamespace = current_schema()::regnamespace AND lanname = 'plpgsql' AND pronargs = 0
      AND NOT prosecdef AND proconfig = ARRAY['search_path=' || quote_ident(current_schema()) || ', pg_temp']
"""
_dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


class Guards:
    """The guards that a database has."""

    def __init__(self, fetch: Fetch) -> None:
        self._plain = {table for (table,) in fetch(_PLAIN)}
        self._columns = set(fetch(_COLUMNS))
        self._keys = {(table, tuple(columns)) for table, columns in fetch(_KEYS)}
        self._checks = {(table, name, _bare(condition)) for table, name, condition in fetch(_CHECKS)}
        self._triggers = {Trigger(*row) for row in fetch(_TRIGGERS)}
        self._functions: dict[str, str] = dict(fetch(_FUNCTIONS))

    def has_key(self, *path: str) -> bool:
        """Whether no two rows have the same in a table's columns: `has_key(table, column, ...)`."""
        return path[0] in self._plain and (path[0], path[1:]) in self._keys

    def missing(self) -> Iterator[Finding]:
        """A finding for each that is not there, or does not work."""
        for table in metadata.sorted_tables:
            yield from self._missing_shape(table)
            yield from self._missing_keys(table)
            yield from self._missing_checks(table)
        for trigger in TRIGGERS:
            if trigger not in self._triggers:
                yield _missing(f"the trigger {trigger.name} of {trigger.table}, which refuses changes,")
        for name, digest in FUNCTIONS.items():
            if self._functions.get(name) != digest:
                yield _missing(f"the function {name}, as it was made to refuse changes,")

    def _missing_shape(self, table: sa.Table) -> Iterator[Finding]:
        if table.name not in self._plain:
            yield _missing(f"{table.name} as an ordinary table without children, rules and row security")
        for column in table.columns:
            # A collation is no part of the type, as the catalogue writes it.
            kind, _, _ = column.type.compile(_dialect).lower().partition(" collate ")
            if (table.name, column.name, kind, not column.nullable) not in self._columns:
                yield _missing(f"the column {column.name} of {table.name}, as it was made,")

    def _missing_keys(self, table: sa.Table) -> Iterator[Finding]:
        uniques = [each for each in table.constraints if isinstance(each, sa.UniqueConstraint)]
        for columns in (table.primary_key.columns, *(each.columns for each in uniques)):
            names = [column.name for column in columns]
            if (table.name, tuple(names)) not in self._keys:
                yield _missing(f"the unique key ({', '.join(names)}) of {table.name}")

    def _missing_checks(self, table: sa.Table) -> Iterator[Finding]:
        checks = [each for each in table.constraints if isinstance(each, sa.CheckConstraint)]
        for name, condition in sorted((str(check.name), str(check.sqltext)) for check in checks):
            if (table.name, name, _bare(condition)) not in self._checks:
                yield _missing(f"the constraint {name} of {table.name}")


def _bare(condition: str) -> str:
    """A condition without what the database adds when it shows one, and takes away: brackets, quotes and blanks."""
    return re.sub(r'[\s()"]', "", condition)


def _missing(what: str) -> Finding:
    return Finding(None, None, "guards", f"{what} is not there or does not work")
