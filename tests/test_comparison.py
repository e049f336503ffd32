"""Two tables compared: what the statement finds is what a comparison of their rows in Python finds."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tornado.ioloop import IOLoop

from eventstore.comparison import Difference, difference, differences, placed
from eventstore.connection import Connection
from eventstore.statements import ddl
from tests.conftest import on_loop

TABLE = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("owner", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text(collation="C"), primary_key=True),
    sa.Column("size", sa.BigInteger),
    sa.Column("is_old", sa.Boolean),
)
BEFORE, AFTER = placed(TABLE, schema="pg_temp"), placed(TABLE, schema="pg_temp", name="other things")
KEYS = st.tuples(st.integers(-2, 2), st.sampled_from(["", "a", "B", "\u00e4"]))
VALUES = st.tuples(st.none() | st.integers(0, 2), st.none() | st.booleans())
ROWS = st.dictionaries(KEYS, VALUES, max_size=8)
Rows = dict[tuple[int, str], tuple[int | None, bool | None]]


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(database, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
        for table in (BEFORE, AFTER):
            connection.execute(ddl(sa.schema.CreateTable(table)).encode())
        yield connection


def fill(connection: psycopg.Connection[tuple[object, ...]], table: str, rows: Rows) -> None:
    connection.execute(f"TRUNCATE {table}".encode())
    for key, values in rows.items():
        connection.execute(f"INSERT INTO {table} VALUES ($1, $2, $3, $4)".encode(), [*key, *values])


def row(key: tuple[int, str], rows: Rows) -> dict[str, object] | None:
    return dict(zip(("owner", "name", "size", "is_old"), (*key, *rows[key]), strict=True)) if key in rows else None


def expected(before: Rows, after: Rows) -> list[Difference]:
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return [Difference("things", {"owner": key[0], "name": key[1]}, row(key, before), row(key, after)) for key in keys]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(before=ROWS, after=ROWS)
def test_what_is_found_is_what_differs_in_the_order_of_the_keys(
    connection: psycopg.Connection[tuple[object, ...]], before: Rows, after: Rows
) -> None:
    fill(connection, "pg_temp.things", before)
    fill(connection, 'pg_temp."other things"', after)

    found = connection.execute(differences(TABLE, BEFORE, AFTER).text)

    assert [difference(TABLE, each) for each in found] == expected(before, after)


def test_the_connections_of_the_house_run_the_same_statement(database: str, io_loop: IOLoop) -> None:
    before: Rows = {(1, "kept"): (1, True), (2, "gone"): (None, None)}
    after: Rows = {(1, "kept"): (1, None), (3, "new"): (3, False)}

    async def found() -> list[Difference]:
        connection = await Connection.open(database)
        try:
            for table, rows in ((BEFORE, before), (AFTER, after)):
                await connection.fetch(ddl(sa.schema.CreateTable(table)), [])
                name = f'pg_temp."{table.name}"'
                for key, (size, is_old) in rows.items():
                    values = f"{key[0]}, '{key[1]}', {size or 'NULL'}, {'NULL' if is_old is None else is_old}"
                    await connection.fetch(f"INSERT INTO {name} VALUES ({values})", [])
            statement = differences(TABLE, BEFORE, AFTER)
            return [difference(TABLE, each) for each in await connection.fetch(statement.text, statement.bind({}))]
        finally:
            await connection.close()

    assert on_loop(io_loop, found) == expected(before, after)


def test_only_columns_of_two_rows_can_have_changed() -> None:
    old, new = {"id": 1, "size": 2, "is_old": True}, {"id": 1, "size": 3, "is_old": True}

    assert Difference("things", {"id": 1}, old, new).changed == ("size",)
    assert Difference("things", {"id": 1}, None, new).changed == ()
    assert Difference("things", {"id": 1}, old, None).changed == ()


def test_a_row_that_neither_table_has_is_refused() -> None:
    with pytest.raises(ValueError, match="neither table has this row"):
        difference(TABLE, [None] * 8)
