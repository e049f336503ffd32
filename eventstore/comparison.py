"""Two tables of the same shape compared row by row: which rows only one of them has, and which differ.

The tables may be anywhere that one connection sees: `placed` gives a table another schema or name. The statement is
one for psycopg (`Statement.text` on a `RawCursor`) and for `eventstore.connection` alike; `difference` makes of each
of its rows what it says.

    statement = differences(messages, placed(messages, schema="public"), placed(messages, schema="pg_temp"))
    found = [difference(messages, row) for row in connection.execute(statement.text)]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.schema import RETAIN_SCHEMA

from eventstore.statements import Statement


@dataclass(frozen=True)
class Difference:
    """A row that is not the same in both tables: `before` is None where only the second has it, `after` the other way.

    `key` is its primary key by the columns' names; all values are as the database's driver gives them.
    """

    table: str
    key: Mapping[str, Any]
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None

    @property
    def changed(self) -> tuple[str, ...]:
        """The columns in which the two rows differ; none where there is only one."""
        before, after = self.before, self.after
        if before is None or after is None:
            return ()
        return tuple(name for name in before if before[name] != after[name])


def placed(table: sa.Table, *, schema: str | None = None, name: str | None = None) -> sa.Table:
    """The same table in another schema or by another name; `pg_temp` is the schema of temporary ones."""
    return table.to_metadata(sa.MetaData(), schema=schema or RETAIN_SCHEMA, name=name or table.name)


def differences(table: sa.Table, before: sa.FromClause, after: sa.FromClause) -> Statement:
    """The rows of `before` and `after` that are not the same, in the order of their primary keys.

    Both have the columns of `table`. It takes no parameters, and answers the columns of `before`, all null where it
    lacks the row, and then those of `after`. Only the rows that differ are sorted.
    """
    # Named apart, since both may have one and the same name in two schemas.
    old, new = before.alias("before"), after.alias("after")
    keys = [(old.c[column.name], new.c[column.name]) for column in table.primary_key]
    same_key = sa.and_(*(left == right for left, right in keys))
    columns = [[side.c[column.name] for column in table.columns] for side in (old, new)]
    differ = sa.tuple_(*columns[0]).is_distinct_from(sa.tuple_(*columns[1]))
    labelled = [column.label(f"{i}_{column.name}") for i, side in enumerate(columns) for column in side]
    return Statement(
        sa.select(*labelled)
        .select_from(old.join(new, same_key, full=True))
        .where(differ)
        .order_by(*(sa.func.coalesce(left, right) for left, right in keys))
    )


def difference(table: sa.Table, row: Sequence[Any]) -> Difference:
    """What a row of `differences(table, ...)` says."""
    # SQLAlchemy's names are texts of a kind of their own.
    names = [str(column.name) for column in table.columns]
    keys = [str(column.name) for column in table.primary_key]
    before, after = (_side(names, keys, values) for values in (row[: len(names)], row[len(names) :]))
    there = before if before is not None else after
    if there is None:
        raise ValueError("neither table has this row")
    return Difference(str(table.name), {name: there[name] for name in keys}, before, after)


def _side(names: Sequence[str], keys: Sequence[str], values: Sequence[Any]) -> dict[str, Any] | None:
    row = dict(zip(names, values, strict=True))
    # No part of a primary key is ever null.
    return None if row[keys[0]] is None else row
