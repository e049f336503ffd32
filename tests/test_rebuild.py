"""Rebuilding the read models from the log, beside a server that goes on: equal to the live ones, in nobody's way."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tornado.ioloop import IOLoop

import projections
from audit import cli
from chat.commands import Account, Commands
from chat.connections import Connections
from chat.events import (
    ChannelBridged,
    DiscordLinked,
    DiscordMessageDelivered,
    DiscordMessageReceived,
    DiscordMessageRequested,
    DiscordMessageWithdrawn,
    DiscordUserSeen,
    Event,
    MessageDeleted,
    MessageEdited,
    MessageSent,
)
from chat.moderation import Moderation
from chat.names import BOT_ID, BOT_NAME
from eventstore.comparison import Difference
from eventstore.errors import LogError, LogUnavailable
from eventstore.events import Context, StreamWrite
from eventstore.filling import Filling
from eventstore.log import EventLog
from eventstore.rebuild import SCHEMA, Progress, check, discard_leftovers, rebuild
from projections.models import ReadModels
from tests import tables
from tests.conftest import SECRET, on_loop, until
from tests.fold import Fold, Tables
from tests.forks import Forked
from tests.servers import Server, launched
from tests.servers import until as wait_until
from tests.tables import Outage
from tests.test_migrations import CATALOG

PASSWORD = "Passw0rd!"


class Interrupted(Exception):
    """Somebody pressed a key."""


async def rebuilt(database: str, range_size: int = 50_000, progress: Progress | None = None) -> int:
    """Rebuilds off the loop, as another process would; up to which position."""
    done = await asyncio.to_thread(rebuild, database, projections.ALL, range_size=range_size, progress=progress)
    return done.position


def differences(database: str) -> list[Difference]:
    return list(check(database, projections.ALL, range_size=10))


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


async def write_to_discord(log: EventLog, account: Account) -> None:
    """A channel is bridged, and something goes each way, and is edited and deleted."""

    async def append(stream: str, *events: Event) -> int:
        write = StreamWrite(stream, [event.recorded_form() for event in events], expected_version=None)
        return (await log.append(write, context=Context(None, "c"))).first_position

    await append("bridges", ChannelBridged(3, "900", "1", account.account_id))
    await append("discord-user-7", DiscordUserSeen("7", "nelly"), DiscordLinked("7", account.account_id))
    for n in range(10, 16):
        stream, text = f"message-to-discord-{n}", f"message {n}"
        message_id = await append(
            stream,
            MessageSent(3, account.account_id, text),
            DiscordMessageRequested(account.account_id, "900", None, text, of_message=True),
        )
        ids = (str(n), str(100 + n))
        await append(stream, DiscordMessageDelivered(message_id + 1, message_id, account.account_id, "900", ids))
        for words in ("once", "twice", "three times"):
            await append(stream, MessageEdited(message_id, f"{text}, edited {words}", account.account_id))
        if n % 2:
            await append(stream, MessageDeleted(message_id, account.account_id))
            await append(stream, DiscordMessageWithdrawn("900", ids[:1]))
    await append("message-from-discord", MessageSent(3, BOT_ID, "hi"), DiscordMessageReceived("900", "50"))


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
    await write_to_discord(log, alice)
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


@contextmanager
def locked(database: str, table: str, mode: str = "ACCESS EXCLUSIVE") -> Iterator[None]:
    """A transaction of somebody else's that holds a lock on a table."""
    with tables.connect(database) as connection, connection.transaction():
        tables.run(connection, f"LOCK TABLE {{}} IN {mode} MODE", table)
        yield


def others_at_work(database: str) -> list[str]:
    """The statements that other connections to the database run now."""
    with tables.connect(database) as connection:
        query = (
            "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return [text for [text] in tables.rows(connection, query)]


def are_waiting(database: str, count: int) -> Callable[[], bool]:
    return lambda: sum("data" in text for text in others_at_work(database)) >= count


@pytest.mark.gen_test
async def test_a_long_reader_holds_up_the_swap_and_nobody_else(
    commands: Commands, log: EventLog, database: str
) -> None:
    alice = await converse(commands)
    tables_before = identities(database)

    with locked(database, "messages", "ACCESS SHARE"):
        running = asyncio.create_task(asyncio.to_thread(rebuild, database, projections.ALL))
        await until(lambda: not running.done() and "messages" in str(schemas_with_tables(database)))
        for n in range(20):
            await commands.send_message(alice, "den", f"meanwhile {n}", "c")
            await asyncio.sleep(0.02)
        assert not running.done()
        assert identities(database) == tables_before
    done = await running

    assert done.attempts > 1
    # Less than half a second, on however busy a machine: what one attempt may take is a fifth of it.
    assert 0 < done.blocked < 0.5
    assert live(database) == await folded(log)


def schemas_with_tables(database: str) -> list[str]:
    with tables.connect(database) as connection:
        query = "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname = %(schema)s"
        return [name for [name] in tables.rows(connection, query, schema=SCHEMA)]


@pytest.mark.gen_test
async def test_a_reader_who_never_ends_makes_it_give_up(commands: Commands, database: str) -> None:
    await converse(commands)
    before, tables_before = live(database), identities(database)

    with (
        locked(database, "messages", "ACCESS SHARE"),
        pytest.raises(LogError, match="somebody reads them all the time"),
    ):
        await asyncio.to_thread(rebuild, database, projections.ALL, patience=0.0)

    assert (live(database), identities(database)) == (before, tables_before)
    assert schemas(database) == ["public"]


@pytest.mark.gen_test
async def test_what_others_have_built_on_the_tables_is_not_torn_down(commands: Commands, database: str) -> None:
    await converse(commands)
    with tables.connect(database) as connection:
        tables.run(connection, "CREATE VIEW talk AS SELECT text FROM messages")

    with pytest.raises(LogError, match="other objects depend on it"):
        await rebuilt(database)

    with tables.connect(database) as connection:
        assert tables.rows(connection, "SELECT * FROM talk")
    assert schemas(database) == ["public"]


@pytest.mark.gen_test
async def test_everybody_may_do_afterwards_what_they_might_do_before(
    commands: Commands, cluster: str, database: str
) -> None:
    await converse(commands)
    with tables.connect(cluster) as connection:
        for role in ("rebuild_owner", "rebuild_reader", 'rebuild "quoted"'):
            tables.run(connection, "DROP ROLE IF EXISTS {}", role)
            tables.run(connection, "CREATE ROLE {}", role)

    def rights() -> list[tuple[object, ...]]:
        with tables.connect(database) as connection:
            query = (
                "SELECT relname, relowner::regrole::text, '', "
                "(aclexplode(coalesce(relacl, acldefault('r', relowner)))).* "
                "FROM pg_class WHERE relname = ANY (%(names)s) AND relkind = 'r' UNION ALL "
                "SELECT relname, '', attname, (aclexplode(attacl)).* FROM pg_attribute JOIN pg_class ON attrelid = "
                "pg_class.oid WHERE relname = ANY (%(names)s) AND attacl IS NOT NULL ORDER BY 1, 2, 3, 4, 5, 6, 7"
            )
            return tables.rows(connection, query, names=tables.READ_MODELS)

    with tables.connect(database) as connection:
        for change in (
            "GRANT SELECT, INSERT ON messages TO rebuild_reader WITH GRANT OPTION",
            "GRANT SELECT ON messages TO PUBLIC",
            'GRANT SELECT ON dms TO "rebuild ""quoted"""',
            "GRANT SELECT (account_id, username) ON accounts TO rebuild_reader",
            "ALTER TABLE channels OWNER TO rebuild_owner",
            "GRANT SELECT ON channels TO rebuild_reader",
            "REVOKE TRUNCATE ON tokens FROM CURRENT_USER",
            # What these give to fresh tables, the old ones do not have.
            "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO rebuild_reader",
        ):
            tables.run(connection, change)
    before = rights()

    try:
        await rebuilt(database)

        assert rights() == before
    finally:
        with tables.connect(database) as connection:
            for role in ("rebuild_owner", "rebuild_reader", 'rebuild "quoted"'):
                tables.run(connection, "REASSIGN OWNED BY {} TO CURRENT_USER", role)
                tables.run(connection, "DROP OWNED BY {}", role)
                tables.run(connection, "DROP ROLE {}", role)


# --- by the command line -----------------------------------------------------------------------------------------


def replay(database: str, *arguments: str) -> int:
    return cli.run(["replay", *arguments, "--database-url", database], lambda _: pytest.fail("the server was run"))


@contextmanager
def replaying(database: str, output: Path) -> Iterator[Forked | subprocess.Popen[bytes]]:
    """A replay in a process of its own, which can go on when the log is read again, and waits for that.

    What it says is in the file `output`.
    """
    with locked(database, "events"), output.open("wb") as file:
        settings = {"database_url": database}
        process = launched(["replay"], (), settings, stdout=file.fileno(), stderr=file.fileno())
        try:
            # On both of its connections, and neither would ever come to an end by itself.
            wait_until(lambda: len(others_at_work(database)) >= 2, "it runs statements")
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def conversation(io_loop: IOLoop, commands: Commands, database: str) -> str:
    """A database with all kinds of things in it."""
    on_loop(io_loop, lambda: converse(commands))
    return database


def test_ctrl_c_ends_what_runs_in_the_database_and_leaves_nothing(conversation: str, tmp_path: Path) -> None:
    before, tables_before = live(conversation), identities(conversation)

    with replaying(conversation, tmp_path / "output") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert others_at_work(conversation) == []

    assert (tmp_path / "output").read_text().strip() == "interrupted: the read models are as they were"
    assert (live(conversation), identities(conversation)) == (before, tables_before)
    assert schemas(conversation) == ["public"]


@pytest.mark.slow
def test_what_a_killed_one_leaves_is_dropped_by_the_next_start_of_a_server(
    conversation: str, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    with replaying(conversation, tmp_path / "output") as process:
        assert not discard_leftovers(conversation), "one that is under way is let be"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert schemas(conversation) == [SCHEMA, "public"]
    # Killed as it was, its statements go on until the database notices.
    wait_until(lambda: not others_at_work(conversation), "its statements end")

    start_server(database_url=conversation, secret=SECRET.decode())

    assert schemas(conversation) == ["public"]
    assert not discard_leftovers(conversation)


def test_only_those_are_rebuilt_that_are_named(conversation: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, tables_before = live(conversation), identities(conversation)

    assert replay(conversation, "dms", "channels") == 0

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines()[0].startswith("swapped while appends waited for ")
    assert told.err.splitlines()[1].startswith("rebuilt 2 read models from ")
    kept = {name for name, identity in identities(conversation).items() if tables_before[name] == identity}
    assert set(tables.READ_MODELS) - kept == {"dms", "channels", "members"}
    assert live(conversation) == before


@pytest.mark.parametrize("arguments", [("messages", "massages"), ("--check", "massages")])
def test_an_unknown_name_is_wrong_usage_and_the_known_ones_are_told(
    database: str, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(database, *arguments) == 2

    told = capsys.readouterr()
    assert told.out == ""
    assert "'massages'" in told.err
    assert all(projection.name in told.err for projection in projections.ALL)


def test_its_help_tells_all_read_models(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["replay", "--help"], lambda _: None)

    told = " ".join(capsys.readouterr().out.split())
    assert all(projection.name in told for projection in projections.ALL)


# --- checking ----------------------------------------------------------------------------------------------------


def test_a_check_finds_nothing_where_nothing_is_wrong(conversation: str, capsys: pytest.CaptureFixture[str]) -> None:
    tables_before = identities(conversation)

    assert replay(conversation, "--check") == 0

    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"no differences between {len(projections.ALL)} read models and the log\n")
    assert identities(conversation) == tables_before
    assert schemas(conversation) == ["public"]


def test_a_check_shows_each_row_that_is_wrong_and_changes_nothing(
    conversation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with tables.connect(conversation) as connection:
        tables.run(connection, "UPDATE accounts SET username = 'mallory' WHERE account_id = 1000")
        tables.run(connection, "DELETE FROM members WHERE account_id = 1001")
        tables.run(connection, "INSERT INTO messages VALUES (1, 2, 3, 'never said', to_timestamp(0))")
    before = live(conversation)

    assert replay(conversation, "--check") == 1

    told = capsys.readouterr()
    name, joined, invented = (json.loads(line) for line in told.out.splitlines())
    assert (name["table"], name["key"]) == ("accounts", {"account_id": 1000})
    assert name["live"] == {**name["rebuilt"], "username": "mallory"}
    assert (joined["table"], joined["live"], joined["rebuilt"]["account_id"]) == ("members", None, 1001)
    assert joined["key"] == {name: joined["rebuilt"][name] for name in ("channel_id", "account_id")}
    assert (invented["table"], invented["rebuilt"]) == ("messages", None)
    assert invented["live"]["sent_at"] == "1970-01-01T00:00:00Z"
    assert told.err == f"3 differences between {len(projections.ALL)} read models and the log\n"
    assert live(conversation) == before

    assert replay(conversation, "--check", "tokens") == 0
    assert replay(conversation, "--check", "accounts", "--no-json") == 1
    assert "password_hash" not in capsys.readouterr().out, "people see the columns that differ"


@pytest.mark.gen_test
async def test_a_check_and_a_rebuild_keep_out_of_each_others_way(commands: Commands, database: str) -> None:
    await converse(commands)

    def meanwhile(check_or_rebuild: Callable[[], object]) -> Callable[[int, int], None]:
        def do(_position: int, _head: int) -> None:
            with pytest.raises(LogError, match="another rebuild is under way"):
                check_or_rebuild()

        return do

    def another_check() -> list[Difference]:
        return list(check(database, projections.ALL[:1]))

    during_rebuild = meanwhile(another_check)
    await asyncio.to_thread(rebuild, database, projections.ALL[:1], progress=during_rebuild)
    during_check = meanwhile(lambda: rebuild(database, projections.ALL[:1]))
    assert list(check(database, projections.ALL[:1], progress=during_check)) == []
    others: list[Difference] = []
    assert list(check(database, projections.ALL[:1], progress=lambda *_: others.extend(another_check()))) == []
    assert others == [], "two checks do each other no harm"


@pytest.mark.gen_test
async def test_whoever_may_only_read_may_check(commands: Commands, cluster: str, database: str) -> None:
    await converse(commands)
    with tables.connect(database) as connection:
        tables.run(connection, "CREATE ROLE only_reads")
        tables.run(connection, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO only_reads")
    reader = make_conninfo(database, options="-c role=only_reads")
    try:
        assert differences(reader) == []
        with pytest.raises(LogError, match="`replay` must connect as the role that owns"):
            rebuild(reader, projections.ALL)
    finally:
        with tables.connect(database) as connection:
            tables.run(connection, "DROP OWNED BY only_reads")
            tables.run(connection, "DROP ROLE only_reads")


@pytest.mark.gen_test
async def test_unordered_ones_come_to_the_same_in_any_order(commands: Commands, log: EventLog, database: str) -> None:
    await write_to_discord(log, await converse(commands))
    head = await log.head()
    wanted = [projection for projection in projections.ALL if projection.unordered]
    names = [table.name for projection in wanted for table in projection.tables]
    expected = {name: rows for name, rows in live(database).items() if name in names}
    assert all(expected.values())

    for seed in range(5):
        filling = Filling(wanted, "pg_temp", indexes=False)
        with psycopg.connect(database, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
            for statement in ("SET TIME ZONE 'UTC'", *filling.fresh_tables()):
                connection.execute(statement.encode())
            for steps in filling.steps(head, 3):
                for step in steps:
                    for task in random.Random(seed).sample(step, len(step)):
                        task.run(connection)
            found = {name: sorted(connection.execute(f"SELECT * FROM pg_temp.{name}".encode())) for name in names}
        assert found == expected


@pytest.mark.gen_test
async def test_a_range_that_another_one_stands_in_the_way_of_goes_again(
    commands: Commands, log: EventLog, database: str
) -> None:
    await write_to_discord(log, await converse(commands))
    expected = live(database)
    edited = [row[0] for row in expected["messages"] if row[-1] is not None]
    filling = Filling([projections.messages.projection], "public", indexes=False)
    [[_inserts, _keys, [changes]]] = filling.steps(await log.head())
    lock = b"SELECT FROM messages WHERE message_id = $1 FOR UPDATE"
    with tables.connect(database) as looking, psycopg.connect(database, cursor_factory=psycopg.RawCursor) as other:
        tables.run(looking, "UPDATE messages SET edited = NULL")
        connection = psycopg.connect(database, autocommit=True, cursor_factory=psycopg.RawCursor)
        connection.execute(b"SET deadlock_timeout = '100ms'")
        other.execute(lock, [edited[-1]])
        running = asyncio.create_task(asyncio.to_thread(changes.run, connection))
        waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        await until(lambda: tables.rows(looking, waits))

        # Each of the two waits for the other, until the database ends it for one.
        other.execute(b"SET deadlock_timeout = '1min'")
        await asyncio.to_thread(other.execute, lock, [edited[0]])
        other.rollback()
        await running
        connection.close()

        deadlocks = "SELECT FROM pg_stat_database WHERE datname = current_database() AND deadlocks > 0"
        await until(lambda: tables.rows(looking, deadlocks))
    assert live(database) == expected
