"""The reader: statements of many at a time, on a few connections, in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from eventstore import reader as module
from eventstore.connection import Connection, Row
from eventstore.errors import LogError, LogUnavailable, TimedOut
from eventstore.reader import MAX_BATCH, Reader
from eventstore.statements import Statement
from tests.conftest import Enter, until

TWICE = Statement(sa.text("SELECT 2 * :number").bindparams(sa.bindparam("number", type_=sa.BigInteger)))
ECHO = Statement(sa.text("SELECT CAST(:text AS text)").bindparams(sa.bindparam("text", type_=sa.Text)))
INVERSE = Statement(
    sa.text("SELECT 60 / CAST(:number AS bigint)").bindparams(sa.bindparam("number", type_=sa.BigInteger))
)
SLEEP = Statement(sa.text("SELECT pg_sleep(CAST(:milliseconds AS bigint) / 1000.0)"))
# A statement like another, which its own connection is to take this long for at most.
LIMIT = Statement(sa.text("SELECT set_config(:name, '100ms', false)").bindparams(sa.bindparam("name", type_=sa.Text)))
LOCKED = Statement(sa.text("SELECT count(*) FROM locked"))
WHO = Statement(sa.text("SELECT pg_backend_pid()"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that went to the database."""
    sizes: list[int] = []
    original = Connection.fetch_batch

    async def fetch_batch(self: Connection, statements: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[Row]]:
        sizes.append(len(statements))
        return await original(self, statements)

    monkeypatch.setattr(Connection, "fetch_batch", fetch_batch)
    return sizes


@pytest.fixture
def reader(enter: Enter[Reader], database: str) -> Reader:
    return enter(Reader(database, size=2))


async def both_busy(reader: Reader, milliseconds: int) -> list[asyncio.Future[list[Row]]]:
    """Gives each of the reader's two connections a statement that takes so long."""
    asked: list[asyncio.Future[list[Row]]] = []
    for count in (1, 2):
        asked.append(asyncio.ensure_future(reader.fetch(SLEEP, milliseconds=milliseconds)))
        await until(lambda: len(reader._batches) == count)  # noqa: B023 - it ends before the count goes on
    return asked


@pytest.mark.gen_test
async def test_each_of_many_gets_its_own_rows(reader: Reader, batches: list[int]) -> None:
    found = await asyncio.gather(*(reader.fetch(TWICE, number=number) for number in range(100)))
    assert found == [[(2 * number,)] for number in range(100)]
    assert max(batches) == MAX_BATCH


@pytest.mark.gen_test
async def test_what_is_asked_while_all_connections_work_goes_together(reader: Reader, batches: list[int]) -> None:
    busy = await both_busy(reader, milliseconds=100)
    await asyncio.gather(*(reader.fetch(TWICE, number=number) for number in range(8)))
    await asyncio.gather(*busy)
    assert batches[2:] in ([8], [4, 4])


@pytest.mark.gen_test
async def test_a_statement_that_is_refused_fails_alone(reader: Reader, batches: list[int]) -> None:
    asked = (reader.fetch(INVERSE, number=number) for number in (1, 0, 2, 0, 3))
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert batches[0] == 5, "they went together"
    assert [found[i] for i in (0, 2, 4)] == [[(60,)], [(30,)], [(20,)]]
    for error in (found[1], found[3]):
        assert isinstance(error, LogError)
        assert "division by zero" in str(error)


@pytest.mark.gen_test
async def test_a_statement_that_takes_too_long_fails_alone_and_its_connection_stays(
    reader: Reader, batches: list[int]
) -> None:
    await reader.fetch(LIMIT, name="statement_timeout")
    [(before,)] = await reader.fetch(WHO)
    asked = (reader.fetch(SLEEP, milliseconds=milliseconds) for milliseconds in (1, 60_000, 2))
    found = await asyncio.gather(*asked, reader.fetch(WHO), return_exceptions=True)

    assert batches[2] == 4, "they went together"
    assert isinstance(found[1], TimedOut)
    assert "statement timeout" in str(found[1])
    assert not [error for error in (found[0], found[2]) if isinstance(error, BaseException)]
    assert found[3] == await reader.fetch(WHO) == [(before,)]


@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "new"])
@pytest.mark.gen_test
async def test_what_waits_for_a_lock_holds_up_nobody_else_and_its_like_no_longer_than_twice(
    reader: Reader, batches: list[int], database: str, is_prepared: bool
) -> None:
    with psycopg.connect(database) as holder:
        holder.execute("CREATE TABLE locked ()")
        holder.commit()
        if is_prepared:
            await reader.fetch(LOCKED)
        holder.execute("LOCK TABLE locked")
        await reader.fetch(LIMIT, name="lock_timeout")
        began = asyncio.get_running_loop().time()
        asked = (reader.fetch(statement) for statement in (WHO, *[LOCKED] * 20))
        found = await asyncio.gather(*asked, return_exceptions=True)
        took = asyncio.get_running_loop().time() - began

    assert max(batches) == 21, "they went together"
    assert found[0] == await reader.fetch(WHO)
    assert all(isinstance(error, TimedOut) for error in found[1:])
    assert took < 1.0
    assert await reader.fetch(LOCKED) == [(0,)]


@pytest.mark.gen_test
async def test_batches_may_be_large_in_both_directions(reader: Reader, batches: list[int]) -> None:
    texts = [str(i) * (1 << 20) for i in range(8)]
    found = await asyncio.gather(*(reader.fetch(ECHO, text=text) for text in texts))
    assert [row for [row] in found] == [(text,) for text in texts]
    assert batches == [8]


@pytest.mark.gen_test
async def test_who_gives_up_does_not_disturb_the_others(reader: Reader) -> None:
    [(before,)] = await reader.fetch(WHO)
    asked = [asyncio.ensure_future(reader.fetch(SLEEP, milliseconds=50)) for _ in range(3)]
    await asyncio.sleep(0)
    asked[1].cancel()
    for each in (asked[0], asked[2]):
        await each
    assert await reader.fetch(WHO) == [(before,)]


@pytest.mark.gen_test
async def test_nobody_waits_for_a_connection_for_long(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)
    busy = await both_busy(reader, milliseconds=400)
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="too busy"):
            await reader.fetch(WHO)
    await asyncio.gather(*busy)
    assert await reader.fetch(WHO)


@pytest.mark.gen_test
async def test_a_connection_that_breaks_fails_its_batch_and_is_replaced(reader: Reader, database: str) -> None:
    [(pid,)] = await reader.fetch(WHO)
    asked: list[asyncio.Future[Any]] = [asyncio.ensure_future(reader.fetch(SLEEP, milliseconds=5000)) for _ in range(3)]
    await asyncio.sleep(0.05)
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [pid])
    for error in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(error, LogUnavailable)
    assert await reader.fetch(WHO) != [(pid,)]


@pytest.mark.gen_test
async def test_closing_fails_those_who_wait(database: str) -> None:
    async with Reader(database, size=1) as reader:
        asked: list[asyncio.Future[Any]] = [asyncio.ensure_future(reader.fetch(SLEEP, milliseconds=5000))]
        await until(lambda: not reader._asked and reader._batches)
        asked += [asyncio.ensure_future(reader.fetch(WHO)) for _ in range(2)]
        await asyncio.sleep(0.05)
    for error in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(error, LogUnavailable)
