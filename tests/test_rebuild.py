"""Rebuilding the read models from the log, beside a server that goes on: equal to the live ones, in nobody's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import projections
from chat.commands import Account, Channel, Commands
from chat.connections import Connections
from chat.moderation import Moderation
from chat.names import BOT_ID, BOT_NAME
from eventstore import rebuild as rebuild_module
from eventstore.errors import LogError, LogUnavailable
from eventstore.log import EventLog
from eventstore.rebuild import SCHEMA, Progress, rebuild
from projections.models import ReadModels
from tests import tables
from tests.conftest import until
from tests.fold import Fold, Tables
from tests.tables import Outage
from tests.test_migrations import CATALOG

PASSWORD = "Passw0rd!"


class Interrupted(Exception):
    """Somebody pressed a key."""


async def rebuilt(database: str, range_size: int = 50_000, progress: Progress | None = None) -> int:
    """Rebuilds off the loop, as another process would."""
    return await asyncio.to_thread(rebuild, database, projections.ALL, range_size=range_size, progress=progress)


def live(database: str) -> Tables:
    with tables.connect(database) as connection:
        return tables.read_models(connection)


async def folded(log: EventLog) -> Tables:
    return Fold(await log.read(limit=1_000_000)).tables()


async def converse(commands: Commands, name: str = "den") -> Account:
    """Somebody comes, and all kinds of things happen."""
    alice = await commands.register(f"alice-{name}", PASSWORD, "c")
    bob = await commands.register(f"bob-{name}", PASSWORD, "c")
    for _ in range(3):
        await commands.generate_token(alice, "c")
    await commands.make_channel(alice, name, "c")
    await commands.add_member(alice, name, bob.username, "c")
    for n in range(10):
        sent = await commands.send_message((alice, bob)[n % 2], name, f"message {n}", "c")
        direct = await commands.send_direct_message(alice, bob.username, f"message {n}", "c")
        if n % 3 == 0:
            await commands.delete_message((alice, bob)[n % 2], sent.first_position, "c")
            await commands.delete_message(alice, direct.first_position, "c")
    return alice


async def come_and_go(connections: Connections, moderation: Moderation, account: Account) -> None:
    """Connections are opened, closed and opened again, and people are moderated."""
    bot = Account(BOT_ID, BOT_NAME)
    for n in range(10):
        await connections.open(account, 1, f"c{n}", "c", device="phone")
    await connections.open(bot, 1, "another", "c", device="phone")
    await connections.close([(f"c{n}", account.account_id, 1) for n in range(0, 10, 2)], "gone")
    for n in range(0, 10, 4):
        await connections.open(account, 1, f"c{n}", "c", version=2)
    for username in (account.username, account.username.replace("alice", "bob")):
        await moderation.silence(bot, username, 60, "", "c")
        await moderation.ban(bot, username, "", "c")
    await moderation.remove_silence(bot, account.username, "c")
    await moderation.unban(bot, account.username, "c")


def schemas(database: str) -> list[str]:
    with tables.connect(database) as connection:
        query = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)' ORDER BY 1"
        return [name for [name] in tables.rows(connection, query)]


def identities(database: str) -> dict[str, int]:
    """Which tables these are, whatever their names."""
    with tables.connect(database) as connection:
        query = (
            "SELECT relname, oid::bigint FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        )
        return {name: oid for name, oid in tables.rows(connection, query) if name in tables.READ_MODELS}


# --- what comes out ----------------------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize("range_size", [1, 7, 50_000])
async def test_what_is_rebuilt_equals_what_was_kept_up(
    commands: Commands,
    connections: Connections,
    models: ReadModels,
    log: EventLog,
    database: str,
    range_size: int,
) -> None:
    alice = await converse(commands)
    await come_and_go(connections, Moderation(log, models), alice)
    before, tables_before = live(database), identities(database)

    assert all(before.values())

    position = await rebuilt(database, range_size)

    assert position == await log.head()
    assert live(database) == before == await folded(log)
    assert identities(database).keys() == tables_before.keys()
    # Else nothing was rebuilt, and this has shown nothing.
    assert not set(identities(database).values()) & set(tables_before.values())
    assert schemas(database) == ["public"]


@pytest.mark.gen_test
async def test_what_was_spoiled_is_put_right(commands: Commands, log: EventLog, database: str) -> None:
    await converse(commands)
    with tables.connect(database) as connection:
        tables.run(connection, "DELETE FROM messages WHERE message_id % 2 = 0")
        tables.run(connection, "UPDATE accounts SET username = 'mallory'")
        tables.run(connection, "TRUNCATE dms")
        tables.run(connection, "INSERT INTO members VALUES (1, 1, 1)")

    await rebuilt(database)

    assert live(database) == await folded(log)


@pytest.mark.gen_test
async def test_an_empty_log_is_rebuilt_to_nothing(log: EventLog, database: str) -> None:
    assert await rebuilt(database) == 0
    assert not any(live(database).values())


@pytest.mark.gen_test
async def test_indexes_constraints_and_columns_are_those_of_before(commands: Commands, database: str) -> None:
    def catalog() -> list[list[tuple[object, ...]]]:
        with tables.connect(database) as connection:
            return [tables.rows(connection, query) for query in CATALOG.values()]

    before = catalog()
    await rebuilt(database)
    await rebuilt(database)

    assert catalog() == before


@pytest.mark.gen_test
async def test_progress_is_told_as_it_is_made_and_ends_at_the_head(
    commands: Commands, log: EventLog, database: str
) -> None:
    await converse(commands)
    told: list[tuple[int, int]] = []

    position = await rebuilt(database, 10, lambda *place: told.append(place))

    places = [place for place, _ in told]
    assert len(places) >= position // 10
    assert places == sorted(places)
    assert places[-1] == position
    assert {head for _, head in told} == {position}


# --- while a server runs -----------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_statements_that_were_prepared_before_the_swap_go_on_after_it(
    database: str, commands: Commands, log: EventLog, models: ReadModels
) -> None:
    alice = await converse(commands)
    den = await models.channels.by_name("den")
    assert den is not None

    async def ask_everything() -> list[object]:
        return [
            await models.accounts.credentials("alice-den"),
            await models.accounts.next_id(),
            await models.tokens.of_account(alice.account_id),
            await models.channels.of_account(alice.account_id),
            await models.messages.newest_in_channel(den, 50),
            await models.messages.newest_of_sender(alice.account_id, 50),
            await models.dms.newest_of_account(alice.account_id, 50),
        ]

    before = await ask_everything()
    for _ in range(3):
        await rebuilt(database)
        assert await ask_everything() == before

    await converse(commands, "lair")
    assert await ask_everything() != before
    assert live(database) == await folded(log)


class Crowd:
    """People who do all kinds of things until they are told to stop; nothing that they do may fail."""

    def __init__(self, commands: Commands, models: ReadModels, alice: Account, den: Channel) -> None:
        self._commands = commands
        self._models = models
        self._alice = alice
        self._den = den
        self._done = 0
        self._going_on = True

    async def __aenter__(self) -> Crowd:
        self._group = await asyncio.TaskGroup().__aenter__()
        for act in (self._come, self._make_channel, *[self._send] * 6, *[self._write_to] * 3, *[self._read] * 6):
            self._group.create_task(self._go_on(act))
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._going_on = False
        await self._group.__aexit__(*error)

    async def does(self, more: int) -> None:
        """Returns once the people have done some more things."""
        enough = self._done + more
        await until(lambda: self._done >= enough)

    async def _go_on(self, act: Callable[[int], Awaitable[None]]) -> None:
        while self._going_on:
            self._done += 1
            await act(self._done)

    async def _come(self, n: int) -> None:
        somebody = await self._commands.register(f"person-{n}", PASSWORD, "c")
        await self._commands.add_member(self._alice, self._den.name, somebody.username, "c")
        await self._commands.generate_token(somebody, "c")

    async def _make_channel(self, n: int) -> None:
        await self._commands.make_channel(self._alice, f"channel-{n}", "c")

    async def _send(self, n: int) -> None:
        sent = await self._commands.send_message(self._alice, self._den.name, f"message {n}", "c")
        if n % 2:
            await self._commands.delete_message(self._alice, sent.first_position, "c")

    async def _write_to(self, n: int) -> None:
        await self._commands.send_direct_message(self._alice, "bob-den", f"message {n}", "c")

    async def _read(self, _n: int) -> None:
        found = await self._models.messages.newest_in_channel(self._den, 50)
        assert [message.message_id for message in found] == sorted(message.message_id for message in found)
        await self._models.messages.newest_of_sender(self._alice.account_id, 50)
        await self._models.dms.newest_of_account(self._alice.account_id, 50)
        await self._models.channels.of_account(self._alice.account_id)
        await self._models.accounts.credentials("alice-den")
        await self._models.tokens.bearer("a digest")


@pytest.mark.slow
@pytest.mark.gen_test
async def test_nobody_fails_who_writes_and_reads_meanwhile(
    database: str, commands: Commands, log: EventLog, models: ReadModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that what comes meanwhile is caught up with in several goes before the swap, too.
    monkeypatch.setattr(rebuild_module, "_LAST_STRETCH", 50)
    alice = await converse(commands)
    den = await models.channels.by_name("den")
    assert den is not None

    async with Crowd(commands, models, alice, den) as crowd:
        for _ in range(8):
            await crowd.does(100)
            await rebuilt(database, range_size=500)
        await crowd.does(100)

    assert live(database) == await folded(log)


# --- what comes in its way ---------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_an_interrupted_one_leaves_the_live_tables_alone_and_the_next_one_works(
    commands: Commands, log: EventLog, database: str
) -> None:
    await converse(commands)
    before, tables_before = live(database), identities(database)

    def interrupt(position: int, head: int) -> None:
        if position > head // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        await rebuilt(database, 5, interrupt)

    assert (live(database), identities(database)) == (before, tables_before)
    await converse(commands, "lair")
    await rebuilt(database)
    assert live(database) == await folded(log)
    assert schemas(database) == ["public"]


@pytest.mark.gen_test
async def test_of_two_at_once_the_second_says_that_there_is_a_first(
    commands: Commands, log: EventLog, database: str
) -> None:
    await converse(commands)
    under_way, go_on = threading.Event(), threading.Event()

    def wait(position: int, head: int) -> None:
        under_way.set()
        assert go_on.wait(10)

    first = asyncio.create_task(rebuilt(database, 5, wait))
    await until(under_way.is_set)
    try:
        with pytest.raises(LogError, match="another rebuild is under way"):
            await rebuilt(database)
    finally:
        go_on.set()

    assert await first == await log.head()
    assert live(database) == await folded(log)
    assert await rebuilt(database) == await log.head()


@pytest.mark.gen_test
async def test_one_that_loses_the_database_says_so_and_leaves_the_live_tables_alone(
    commands: Commands, log: EventLog, database: str, outage: Outage
) -> None:
    await converse(commands)
    before, tables_before = live(database), identities(database)

    with pytest.raises(LogUnavailable, match="lost the database"):
        await rebuilt(database, 5, lambda *_: outage.end_connections())

    assert (live(database), identities(database)) == (before, tables_before)
    assert schemas(database) == [SCHEMA, "public"]
    await until(lambda: log.ready)
    await rebuilt(database)
    assert schemas(database) == ["public"]
