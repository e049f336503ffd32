"""Signing checkpoints: over a real log, beside other processes, over faults, and never over a fork."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from eventstore.canonical import encode
from eventstore.errors import LogError, LogUnavailable
from eventstore.events import Context, NewEvent, StreamWrite
from eventstore.ids import new_id
from eventstore.log import EventLog
from eventstore.transparency import tree
from eventstore.transparency.checkpoints import (
    Checkpoint,
    Checkpointer,
    Checkpoints,
    ForeignKey,
    Fork,
    SignedCheckpoint,
)
from eventstore.transparency.notes import BadNote, SigningKey
from tests.conftest import until
from tests.tables import Outage, connect, rows

CONTEXT = Context(actor=None, correlation_id="test")
KEY = SigningKey.generate("example.com/minutes")
OTHER_KEY = SigningKey.generate("example.com/minutes")
FACT = NewEvent("Fact", encode({"n": 1}))
# As long as no test waits for a second checkpoint of the same process.
LONG = 3600.0


async def record(log: EventLog, count: int = 1) -> None:
    """Appends so many events."""
    await log.append(StreamWrite(f"facts-{new_id()}", [FACT] * count), context=CONTEXT)


def checkpointer(database: str, key: SigningKey = KEY, interval: float = LONG) -> Checkpointer:
    return Checkpointer(database, key, interval)


def leaves(database: str) -> list[bytes]:
    with connect(database) as connection:
        return [leaf for (leaf,) in rows(connection, "SELECT leaf_hash FROM events ORDER BY position")]


def execute(database: str, statement: str) -> None:
    """Does what only somebody with all rights over the database can do."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        for table in ("events", "checkpoints"):
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL".encode())
        connection.execute(statement.encode())


async def kept(log: EventLog) -> list[SignedCheckpoint]:
    return [signed async for signed in Checkpoints(log.reader).all()]


@asynccontextmanager
async def running(*checkpointers: Checkpointer) -> AsyncIterator[None]:
    """They sign until this ends."""
    tasks = [asyncio.create_task(each.run()) for each in checkpointers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)


# What a checkpoint says


def test_a_checkpoint_s_text_is_that_of_the_specification() -> None:
    root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="
    text = f"example.com/behind-the-sofa\n20852163\n{root}\n"

    read = Checkpoint.parse(text)

    assert (read.origin, read.size, read.text()) == ("example.com/behind-the-sofa", 20852163, text)
    assert Checkpoint.parse(f"{text}an extension\n") == read


@given(st.integers(0, 10**18), st.binary(min_size=32, max_size=32))
def test_what_was_signed_is_opened(size: int, root: bytes) -> None:
    checkpoint = Checkpoint(KEY.name, size, root)

    assert Checkpoint.open(KEY.sign(checkpoint.text()), KEY.verifier_key) == checkpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n1\n",
        "\n1\nAA==\n",
        "a\n1\nAAAA\n",
        f"a\n1\n{'A' * 43}=\n\nb\n",
        *(f"a\n{size}\n{'A' * 43}=\n" for size in ("", "01", "-1", "1.0", "1" * 20, "\u0661")),
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(BadNote, match="no checkpoint"):
        Checkpoint.parse(text)


def test_a_checkpoint_of_another_log_is_refused_even_if_the_key_signed_it() -> None:
    note = KEY.sign(Checkpoint("example.com/other", 1, bytes(32)).text())

    with pytest.raises(BadNote, match="of another log"):
        Checkpoint.open(note, KEY.verifier_key)


# Signing


@pytest.mark.gen_test
async def test_it_signs_the_whole_log_by_a_key_that_it_keeps(bare_log: EventLog, database: str) -> None:
    assert await Checkpoints(bare_log.reader).verifier_key() is None
    await record(bare_log, 5)

    signed = await checkpointer(database).sign_now()

    assert Checkpoint.open(signed.note, KEY.verifier_key) == Checkpoint(KEY.name, 5, tree.root(leaves(database)))
    assert await kept(bare_log) == [signed]
    assert await Checkpoints(bare_log.reader).verifier_key() == KEY.verifier_key


@pytest.mark.gen_test
async def test_a_log_that_has_not_grown_gets_no_second_checkpoint(bare_log: EventLog, database: str) -> None:
    await record(bare_log)
    first = await checkpointer(database).sign_now()

    assert await checkpointer(database).sign_now() == first
    assert await kept(bare_log) == [first]


@pytest.mark.gen_test
async def test_an_empty_log_has_nothing_to_sign(bare_log: EventLog, database: str) -> None:
    with pytest.raises(LogError, match="the log is empty"):
        await checkpointer(database).sign_now()
    assert await kept(bare_log) == []


@pytest.mark.gen_test
async def test_every_checkpoint_is_of_the_same_tree_however_the_log_grew(bare_log: EventLog, database: str) -> None:
    for count in (1, 254, 1, 1, 255, 257, 300):
        await record(bare_log, count)
        await checkpointer(database).sign_now()

    all_leaves = leaves(database)
    opened = [Checkpoint.open(signed.note, KEY.verifier_key) for signed in await kept(bare_log)]
    assert [checkpoint.size for checkpoint in opened] == [1, 255, 256, 257, 512, 769, 1069]
    assert [checkpoint.root for checkpoint in opened] == [tree.root(all_leaves[: each.size]) for each in opened]
    with connect(database) as connection:
        full = rows(connection, "SELECT level, index, hash FROM tree_hashes ORDER BY level, index")
    assert full == [(1, tile, tree.root(all_leaves[tile * 256 :][:256])) for tile in range(4)]


@pytest.mark.gen_test
async def test_the_checkpoint_of_a_position_is_the_first_that_covers_it(bare_log: EventLog, database: str) -> None:
    checkpoints = Checkpoints(bare_log.reader)
    for _ in range(2):
        await record(bare_log, 3)
        await checkpointer(database).sign_now()
    first, second = await kept(bare_log)

    assert [await checkpoints.covering(position) for position in (1, 3, 4, 6, 7)] == [
        first,
        first,
        second,
        second,
        None,
    ]
    assert await checkpoints.newest() == second
    assert [await checkpoints.covers(size) for size in (6, 7, 2**63, 2**70)] == [True, False, False, False]


# While the log grows


@pytest.mark.gen_test
async def test_it_signs_by_itself_once_in_an_interval_and_only_when_the_log_has_grown(
    bare_log: EventLog, database: str
) -> None:
    checkpoints = Checkpoints(bare_log.reader)
    async with running(*(checkpointer(database, interval=0.2) for _ in range(3))):
        await record(bare_log)
        for size in range(2, 12):
            await record(bare_log)
            await asyncio.sleep(0.05)
            assert size == await bare_log.head()
        async with asyncio.timeout(5):
            while not await checkpoints.covers(11):  # noqa: ASYNC110 - another task signs
                await asyncio.sleep(0.02)
        count = len(await kept(bare_log))
        await asyncio.sleep(0.5)

    signed = await kept(bare_log)
    assert len(signed) == count
    times = [each.signed_at for each in signed]
    assert all((later - earlier).total_seconds() >= 0.199 for earlier, later in itertools.pairwise(times))
    assert count >= 3


@pytest.mark.gen_test
async def test_a_clock_that_was_set_back_is_not_waited_for(bare_log: EventLog, database: str) -> None:
    await record(bare_log)
    await checkpointer(database).sign_now()
    execute(database, "UPDATE checkpoints SET signed_at = signed_at + interval '1 day'")
    await record(bare_log)

    async with running(checkpointer(database, interval=0.05)):
        async with asyncio.timeout(5):
            while not await Checkpoints(bare_log.reader).covers(2):  # noqa: ASYNC110 - another task signs
                await asyncio.sleep(0.02)


@pytest.mark.gen_test
async def test_many_who_sign_at_once_sign_one_tree(bare_log: EventLog, database: str) -> None:
    await record(bare_log, 400)

    signed = await asyncio.gather(*(checkpointer(database).sign_now() for _ in range(5)))

    assert {each.note for each in signed} == {each.note for each in await kept(bare_log)}
    assert len({each.note for each in signed}) == 1


@pytest.mark.gen_test
async def test_who_has_another_key_signs_nothing_and_says_so_once(bare_log: EventLog, database: str) -> None:
    await record(bare_log)
    first = await checkpointer(database).sign_now()
    await record(bare_log)
    stranger = checkpointer(database, OTHER_KEY, interval=0.05)

    with pytest.raises(ForeignKey, match="another key"):
        await stranger.sign_now()
    with capture_logs() as logged:
        async with running(stranger):
            await until(lambda: logged)
            await asyncio.sleep(0.3)

    assert [(line["log_level"], line["event"]) for line in logged] == [("warning", "this process signs no checkpoints")]
    assert await kept(bare_log) == [first]


@pytest.mark.gen_test
async def test_a_lost_database_is_waited_for(bare_log: EventLog, database: str, outage: Outage) -> None:
    await record(bare_log)
    outage.begin()
    with pytest.raises(LogUnavailable):
        await checkpointer(database).sign_now()

    with capture_logs() as logged:
        async with running(checkpointer(database, interval=0.05)):
            await until(lambda: any(line["event"] == "no checkpoint could be signed" for line in logged))
            outage.end()
            checkpoints = Checkpoints(bare_log.reader)
            async with asyncio.timeout(10):
                while True:
                    with suppress(LogUnavailable):
                        if await checkpoints.covers(1):
                            break
                    await asyncio.sleep(0.02)


@pytest.mark.gen_test
async def test_a_stop_in_the_middle_leaves_a_tree_that_the_next_goes_on_with(bare_log: EventLog, database: str) -> None:
    for _ in range(4):
        await record(bare_log, 400)
    for turns in range(0, 60, 4):
        task = asyncio.create_task(checkpointer(database).sign_now())
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    signed = await checkpointer(database).sign_now()

    assert Checkpoint.open(signed.note, KEY.verifier_key).root == tree.root(leaves(database))
    assert [each.size for each in await kept(bare_log)] == [1600]


# Never a fork


@pytest.mark.parametrize(
    "fault",
    [
        "UPDATE events SET leaf_hash = sha256('x') WHERE position = 301",
        "UPDATE tree_hashes SET hash = sha256('x') WHERE level = 1 AND index = 0",
        "DELETE FROM events WHERE position > 250; DELETE FROM tree_hashes; UPDATE log_head SET position = 250",
    ],
    ids=["a leaf of the right edge", "a node of the tree", "the end of the log"],
)
@pytest.mark.gen_test
async def test_a_log_that_is_not_what_was_signed_is_not_signed_again(
    bare_log: EventLog, database: str, fault: str
) -> None:
    await record(bare_log, 302)
    first = await checkpointer(database).sign_now()
    execute(database, fault)
    await record(bare_log, 30)

    with pytest.raises(Fork):
        await checkpointer(database).sign_now()
    with capture_logs() as logged:
        async with running(checkpointer(database, interval=0.02)):
            # The first look comes when the last checkpoint is old enough; it goes on saying so.
            await until(lambda: len(logged) >= 2)

    assert {(line["log_level"], line["event"]) for line in logged} == {("error", "no checkpoint was signed")}
    assert await kept(bare_log) == [first]


@pytest.mark.gen_test
async def test_a_checkpoint_of_the_table_that_the_key_has_not_signed_is_not_built_on(
    bare_log: EventLog, database: str
) -> None:
    await record(bare_log)
    await checkpointer(database).sign_now()
    note: Sequence[str] = (await kept(bare_log))[0].note.split("\n")
    execute(database, f"UPDATE checkpoints SET note = '{note[0]}x' || substr(note, {len(note[0]) + 1})")
    await record(bare_log)

    with pytest.raises(BadNote):
        await checkpointer(database).sign_now()


@pytest.mark.gen_test
async def test_kept_checkpoints_cannot_be_changed(bare_log: EventLog, database: str) -> None:
    await record(bare_log)
    await checkpointer(database).sign_now()

    for change in ("DELETE FROM checkpoints", "UPDATE checkpoints SET note = ''", "TRUNCATE checkpoints"):
        with psycopg.connect(database) as connection, pytest.raises(psycopg.errors.IntegrityError, match="immutable"):
            connection.execute(change.encode())
