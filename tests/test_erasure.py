"""Erasure: what is erased stands nowhere any more, and everything else, the proofs too, is as it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql
from tornado.ioloop import IOLoop

import chat.erasure
import projections
from audit import cli
from chat.commands import Account, Commands
from chat.connections import Connections
from chat.erasure import Erasure, Outcome
from chat.events import (
    DiscordLinked,
    DiscordMessageDelivered,
    DiscordMessageReceived,
    DiscordMessageRequested,
    DiscordUnlinked,
    DiscordUserSeen,
    Erased,
    Event,
    MessageEdited,
    MessageSent,
)
from chat.moderation import Moderation
from chat.names import BOT_ID, BOT_NAME
from chat.refusals import Malformed, Reason, Refused
from eventstore.erasure import scrub
from eventstore.errors import LogError
from eventstore.events import Context, RecordedEvent, StreamWrite
from eventstore.integrity.inspection import inspect
from eventstore.log import EventLog
from eventstore.rebuild import check
from projections.models import ReadModels
from projections.traces import Traces
from tests import tables
from tests.conftest import OPERATOR, until
from tests.decoded import Decoded
from tests.listeners import Chat, own_chat
from tests.servers import Server
from tests.tampering import COLUMNS, leaf_hash_of

PASSWORD = "Passw0rd!"
NAME = "Zebediah Quux"
CONTEXT = Context(None, "a test")
BOT = Account(BOT_ID, BOT_NAME)
REASON, BY = "asked for by its owner", "the clerk of the tests"


@pytest.fixture
def erasure(log: EventLog, models: ReadModels) -> Erasure:
    return Erasure(log, models, Traces(log.reader), under_way=0.01)


@pytest.fixture
def beside(database: str) -> Iterator[tables.Beside]:
    made = tables.Beside(database)
    yield made
    made.close()


async def everything(log: EventLog) -> list[RecordedEvent]:
    return await log.read(limit=10_000)


async def refused(doing: object) -> Reason:
    with pytest.raises(Refused) as caught:
        await doing  # type: ignore[misc]
    return caught.value.reason


def hashes_hold(database: str) -> bool:
    """Whether every leaf hash follows from its event, by the kept digest where the data is erased."""
    with tables.connect(database) as connection:
        found = tables.rows(connection, f"SELECT leaf_hash, {COLUMNS} FROM events")
    return bool(found) and all(leaf_hash_of(*row) == leaf for leaf, *row in found)


def places_of(database: str, *words: str) -> list[str]:
    """The columns of all tables, and of the planner's samples, whose text holds any of the words."""
    with tables.connect(database) as connection:
        columns = tables.rows(
            connection,
            "SELECT table_schema, table_name, column_name FROM information_schema.columns "
            "WHERE table_schema NOT IN ('pg_catalog', 'information_schema') OR table_name = 'pg_stats'",
        )
        found = []
        for schema, table, column in columns:
            query = sql.SQL("SELECT string_agg({}::text, ' ') FROM {}").format(
                sql.Identifier(column), sql.Identifier(schema, table)
            )
            row = connection.execute(query).fetchone()
            text = str(row[0] if row else "").lower()
            found += [f"{table}.{column}: {word}" for word in words if word.lower() in text]
    return found


class World:
    """Somebody who is to be erased, among others; and what happened."""

    def __init__(self, log: EventLog, models: ReadModels, commands: Commands, connections: Connections) -> None:
        self.log = log
        self.models = models
        self.commands = commands
        self.connections = connections
        self.moderation = Moderation(log, models, [OPERATOR])
        self.sent: dict[str, int] = {}

    async def happen(self) -> None:
        """What an account can do and suffer."""
        commands = self.commands
        self.person, self.bob, self.operator = [
            await commands.register(name, PASSWORD, "c") for name in (NAME, "bob", OPERATOR)
        ]
        self.token, _ = await commands.generate_token(self.person, "c")
        await self.connections.open(self.person, 1, "theirs", "c", device="zebediah's telephone")
        await commands.make_channel(self.bob, "den", "c")
        await commands.add_member(self.bob, "den", NAME, "c")
        await self.say(self.person, "zebra one", "first")
        await self.say(self.person, "zebra two", "deleted")
        await commands.delete_message(self.person, self.sent["deleted"], "c", source_address="192.0.2.1")
        await self.say(self.bob, "hello zebra", "bob's")
        await self.say(self.bob, f"I know {NAME.upper()}", "mention")
        self.sent["dm"] = (await commands.send_direct_message(self.person, "bob", "zebra three", "c")).first_position
        self.sent["to them"] = (await commands.send_direct_message(self.bob, NAME, "psst", "c")).first_position
        # What the bot answers belongs to the request that it answers.
        await commands.send_message(self.person, "den", "!roll", "a roll")
        await commands.send_message(BOT, "den", f"{NAME} rolls 7 of 100.", "a roll")
        await commands.send_message(BOT, "den", "bob rolls 8 of 100.", "another roll")
        await self.moderation.silence(self.operator, NAME, 3600, "zebra noises", "c")
        await self.moderation.report(self.bob, NAME, "zebra crossing", "c")
        await self.moderation.report(self.person, "bob", "zebra hater", "c")
        await self.moderation.report(self.operator, "bob", "he is loud", "c")

    async def say(self, account: Account, text: str, label: str) -> None:
        appended = await self.commands.send_message(account, "den", text, label, source_address="192.0.2.1")
        self.sent[label] = appended.first_position


@pytest.fixture
def world(log: EventLog, models: ReadModels, commands: Commands, connections: Connections) -> World:
    return World(log, models, commands, connections)


# --- messages ----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_an_erased_message_is_gone_and_everything_else_is_as_it_was(
    world: World, erasure: Erasure, models: ReadModels, database: str, beside: tables.Beside
) -> None:
    await world.happen()
    before = {event.position: event for event in await everything(world.log)}
    head = len(before)
    leaves = "SELECT leaf_hash FROM events WHERE position <= %(head)s ORDER BY position"
    tree = tables.rows(beside.connection, leaves, head=head)

    outcome = await erasure.erase_message(world.sent["first"], REASON, BY)

    assert outcome == Outcome(None, world.sent["first"], 1, (head + 1,))
    after = await everything(world.log)
    changed = [event for event in after if before.get(event.position) != event]
    assert [(event.position, event.type, event.data) for event in changed[:-1]] == [
        (world.sent["first"], "MessageSent", None)
    ]
    assert (changed[-1].position, changed[-1].type) == (head + 1, "Erased")
    assert changed[-1].stream == before[world.sent["first"]].stream
    assert changed[-1].body() == {
        "account_id": None,
        "message_id": world.sent["first"],
        "positions": [world.sent["first"]],
        "reason": REASON,
        "erased_by": BY,
    }
    assert hashes_hold(database)
    assert tables.rows(beside.connection, leaves, head=head) == tree, "so every proof from before still checks"
    assert await models.messages.by_id(world.sent["first"]) is None
    assert await models.messages.by_id(world.sent["bob's"]) is not None
    assert beside.project([(0, head + 1)]) == tables.read_models(beside.connection)
    assert await refused(world.commands.delete_message(world.person, world.sent["first"], "c")) is (
        Reason.MESSAGE_NOT_FOUND
    )


@pytest.mark.gen_test
async def test_a_deleted_message_and_a_direct_one_can_be_erased_with_what_deleted_them(
    world: World, erasure: Erasure, models: ReadModels
) -> None:
    await world.happen()

    deleted = await erasure.erase_message(world.sent["deleted"], REASON, BY)
    direct = await erasure.erase_message(world.sent["dm"], REASON, BY)

    assert (deleted.erased, direct.erased) == (2, 1)
    gone = [event for event in await everything(world.log) if event.data is None]
    assert [event.type for event in gone] == ["MessageSent", "MessageDeleted", "DirectMessageSent"]
    assert await models.dms.by_id(world.sent["dm"]) is None
    assert await models.dms.by_id(world.sent["to them"]) is not None


@pytest.mark.gen_test
async def test_what_cannot_be_erased_is_refused_and_nothing_happens(world: World, erasure: Erasure) -> None:
    await world.happen()
    await erasure.erase_message(world.sent["first"], REASON, BY)
    before = await everything(world.log)

    for message_id, reason in (
        (world.sent["first"], Reason.ALREADY_ERASED),
        (1, Reason.MESSAGE_NOT_FOUND),
        (len(before), Reason.MESSAGE_NOT_FOUND),
        (10**9, Reason.MESSAGE_NOT_FOUND),
    ):
        assert await refused(erasure.erase_message(message_id, REASON, BY)) is reason
    for account_id, reason in ((BOT_ID, Reason.NOT_FOR_THE_BOT), (77, Reason.USER_NOT_FOUND)):
        assert await refused(erasure.erase_account(account_id, REASON, BY)) is reason
    assert await refused(erasure.find("nobody")) is Reason.USER_NOT_FOUND
    for why, by in (("because zebediah_quux wants it", BY), (REASON, NAME), ("x" * 501, BY), (REASON, "x" * 501)):
        with pytest.raises(Malformed):
            await erasure.erase_account(world.person.account_id, why, by)

    assert await everything(world.log) == before


# --- accounts ----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_an_erased_account_s_name_and_words_stand_nowhere(
    world: World, erasure: Erasure, database: str, beside: tables.Beside
) -> None:
    await world.happen()
    with tables.connect(database) as connection:
        # The planner samples columns; what it has sampled must go, too.
        connection.execute("ANALYZE")
    said = ("zebediah", "zebra one", "zebra two", "zebra three", "zebra noises", "zebra crossing", "zebra hater")
    assert {place.split(":")[0] for place in places_of(database, "zebediah")} >= {
        *("events.data", "accounts.username", "accounts.safe_name", "messages.text", "pg_stats.histogram_bounds")
    }

    outcome = await erasure.erase_account(world.person.account_id, REASON, BY)
    await asyncio.to_thread(scrub, database, tables.READ_MODELS)

    assert outcome.account_id == world.person.account_id
    assert outcome.mentions == (world.sent["mention"],), "which are others' words, and for the operator to decide"
    await erasure.erase_message(world.sent["mention"], "it names somebody", BY)
    await asyncio.to_thread(scrub, database, tables.READ_MODELS)
    assert places_of(database, *said) == []
    assert places_of(database, "hello zebra", "psst", "he is loud", "bob rolls") != []
    assert hashes_hold(database)
    assert await asyncio.to_thread(lambda: list(inspect(database))) == []
    assert await asyncio.to_thread(lambda: list(check(database, projections.ALL))) == []
    head = await world.log.head()
    assert beside.project([(0, head)]) == tables.read_models(beside.connection)
    assert beside.project(tables.cut(head, range(head))) == tables.read_models(beside.connection)


@pytest.mark.gen_test
async def test_what_was_erased_is_in_no_sample_of_a_table_that_is_empty_now(
    commands: Commands, erasure: Erasure, database: str
) -> None:
    alice = await commands.register("alice", PASSWORD, "c")
    await commands.make_channel(alice, "den", "c")
    sent = [await commands.send_message(alice, "den", f"the only words {number}", "c") for number in range(3)]
    with tables.connect(database) as connection:
        connection.execute("ANALYZE messages")
        collation = "SELECT collation_name FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1"
        before = tables.rows(connection, collation)
        assert places_of(database, "the only words") != []

        for appended in sent:
            await erasure.erase_message(appended.first_position, REASON, BY)
        await asyncio.to_thread(scrub, database, tables.READ_MODELS)

        assert places_of(database, "the only words") == []
        assert tables.rows(connection, collation) == before


def files_that_hold(connection: tables.Connection, *words: str) -> list[str]:
    """The tables and indexes in whose files any of the words is, be it in space that is not used any more."""
    connection.execute("CHECKPOINT")
    query = "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'i', 't') AND NOT relisshared"
    content = "SELECT pg_read_binary_file(pg_relation_filepath(%(name)s::regclass))"
    names = [str(name) for (name,) in tables.rows(connection, query)]
    files = {name: bytes(tables.rows(connection, content, name=name)[0][0]).lower() for name in names}
    return [f"{name}: {word}" for name, file in files.items() for word in words if word.encode() in file]


@pytest.mark.gen_test
async def test_where_the_tables_are_written_anew_no_byte_of_it_stays_in_their_files(
    world: World, erasure: Erasure, database: str
) -> None:
    await world.happen()
    with tables.connect(database) as connection:
        connection.execute("ANALYZE")
        assert {"events: zebediah", "accounts: zebediah"} <= set(files_that_hold(connection, "zebediah"))

        await erasure.erase_account(1000, REASON, BY)
        await erasure.erase_message(world.sent["mention"], REASON, BY)
        await asyncio.to_thread(scrub, database, tables.READ_MODELS, rewrite=True)

        assert files_that_hold(connection, "zebediah", "zebra one", "zebra two", "zebra noises") == []


@pytest.mark.gen_test
async def test_an_erased_account_can_do_nothing_and_others_see_no_name(
    world: World, erasure: Erasure, models: ReadModels
) -> None:
    await world.happen()
    person, commands = world.person, world.commands
    assert (await commands.authenticate(world.token)) == person
    assert await models.account_by_id(person.account_id) == person

    await erasure.erase_account(person.account_id, REASON, BY)

    assert await refused(commands.authenticate(world.token)) is Reason.INVALID_TOKEN
    assert await refused(commands.log_in(NAME, PASSWORD)) is Reason.WRONG_CREDENTIALS
    assert await refused(commands.current_token(person)) is Reason.NO_TOKEN
    # Who was let in just before can do nothing with it.
    assert await refused(commands.generate_token(person, "c")) is Reason.BANNED
    assert await refused(commands.send_message(person, "den", "zebra four", "c")) is Reason.BANNED
    assert await refused(commands.send_direct_message(world.bob, NAME, "hello?", "c")) is Reason.USER_NOT_FOUND
    assert await refused(world.moderation.ban(world.operator, NAME, "", "c")) is Reason.USER_NOT_FOUND
    assert await models.account_by_id(person.account_id) is None
    assert await models.account_by_name("zebediah_quux") is None
    [kept] = await Decoded(models).direct_messages(world.bob, 10)
    assert (kept.sender, kept.recipient, kept.text) == ("bob", f"(erased account {person.account_id})", "psst")
    assert [message.text for message in await Decoded(models).channel(world.bob, "den", 10)] == [
        *("hello zebra", f"I know {NAME.upper()}", "bob rolls 8 of 100.")
    ]
    assert await models.verification.status(person.account_id) == 1


@pytest.mark.gen_test
async def test_an_erased_account_s_name_and_id_are_never_given_again(world: World, erasure: Erasure) -> None:
    await world.happen()
    last = world.operator
    await erasure.erase_account(last.account_id, REASON, BY)

    for name in (OPERATOR, OPERATOR.upper()):
        assert await refused(world.commands.register(name, PASSWORD, "c")) is Reason.USERNAME_TAKEN
    new = await world.commands.register("newcomer", PASSWORD, "c")
    assert new.account_id == last.account_id + 1


@pytest.mark.gen_test
async def test_other_processes_forget_an_erased_account_at_once(world: World, erasure: Erasure, database: str) -> None:
    await world.happen()
    async with EventLog(database, projections.ALL) as other:
        await other.listening()
        models = ReadModels(other)
        assert await models.account_by_name("zebediah_quux") == await models.account_by_id(1000) == world.person
        token = (await models.token_of(1000)) or pytest.fail("there is no token")
        assert await models.bearer_of_token(str(token.token_digest)) is not None
        following = other.follow(world.sent["first"] - 1)
        assert (await anext(following))[0].data is not None

        await erasure.erase_account(1000, REASON, BY)

        head = await world.log.head()
        await until(lambda: other._feed.last == head)
        assert await models.account_by_name("zebediah_quux") is await models.account_by_id(1000) is None
        assert await models.bearer_of_token(str(token.token_digest)) is None


@pytest.mark.gen_test
async def test_what_a_process_keeps_for_slow_followers_is_erased_too(
    commands: Commands, log: EventLog, erasure: Erasure
) -> None:
    alice = await commands.register("alice", PASSWORD, "c")
    await commands.make_channel(alice, "den", "c")
    sent = await commands.send_message(alice, "den", "out of the window", "c")
    [kept] = log._feed._from_window(sent.first_position - 1)
    assert kept.data is not None

    await erasure.erase_message(sent.first_position, REASON, BY)

    [emptied, erased] = log._feed._from_window(sent.first_position - 1)
    assert (emptied.position, emptied.data) == (sent.first_position, None)
    assert erased.type == "Erased"


@pytest.mark.gen_test
async def test_many_events_are_erased_in_chunks_that_can_be_taken_up_again(
    world: World, erasure: Erasure, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    await world.happen()
    monkeypatch.setattr(chat.erasure, "MAX_POSITIONS", 3)
    append, appends = world.log.append, 0

    async def fail_at_the_second(*writes: StreamWrite, context: Context) -> object:
        nonlocal appends
        appends += 1
        if appends == 2:
            raise LogError("the power fails")
        return await append(*writes, context=context)

    monkeypatch.setattr(world.log, "append", fail_at_the_second)
    with pytest.raises(LogError, match="the power fails"):
        await erasure.erase_account(1000, REASON, BY)
    monkeypatch.setattr(world.log, "append", append)
    assert places_of(database, "zebra two") != []
    assert await refused(erasure.find(NAME)) is Reason.USER_NOT_FOUND
    assert await refused(world.commands.authenticate(world.token)) is Reason.INVALID_TOKEN

    rest = await erasure.erase_account(1000, REASON, BY)

    erased = [Erased(**{**event.body(), "positions": tuple(event.body()["positions"])})
              for event in await everything(world.log) if event.type == "Erased"]  # fmt: skip
    assert [len(each.positions) for each in erased] == [3, 3, 3, 2]
    assert rest.erased == 8
    assert sorted(position for each in erased for position in each.positions) == [
        event.position for event in await everything(world.log) if event.data is None
    ]
    assert [event.type for event in await everything(world.log)].count("TokenRevoked") == 1
    await erasure.erase_message(world.sent["mention"], REASON, BY)
    await asyncio.to_thread(scrub, database, tables.READ_MODELS)
    assert places_of(database, "zebediah", "zebra one", "zebra three", "zebra hater") == []
    assert await refused(erasure.erase_account(1000, REASON, BY)) is Reason.ALREADY_ERASED


class OnDiscord:
    """What somebody left on the way to Discord and from there, and others beside."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def happen(self) -> None:
        """Of the account 1000, of the bot that answers it, and of others."""
        self.sent = await self._relay(1000, "zebra four", "asking")
        await self._append("message-1", DiscordMessageDelivered(self.sent + 1, self.sent, 1000, "900", ("11",)))
        await self._append("message-1", MessageEdited(self.sent, "zebra five", 1000))
        await self._relay(BOT_ID, "zebra answers", "asking")
        self.alone = await self._append("message-3", DiscordMessageRequested(1000, None, "77", "zebra six"))
        came = (MessageSent(3, 1000, "zebra from there"), DiscordMessageReceived("900", "20"))
        self.came = await self._append("message-4", *came)
        self.seen = await self._append("discord-user-1", DiscordUserSeen("77", "zebra.dc"))
        await self._append("discord-user-1", DiscordLinked("77", 1000), actor=1000)
        await self._append("discord-user-1", DiscordUserSeen("77", "zebra.anew"))
        # Who was the account once, and is another one now, is none of its business.
        for event in (DiscordUserSeen("78", "nelly"), DiscordLinked("78", 1000), DiscordUnlinked("78", 1000)):
            await self._append("discord-user-2", event, actor=1000)
        await self._append("discord-user-2", DiscordLinked("78", 1001), actor=1001)
        # Others that speak of it.
        self.mention = await self._relay(1001, f"ask {NAME}", "others")
        await self._append("message-5", MessageEdited(self.mention, f"do ask {NAME}", 1001))
        self.whisper = await self._append("message-6", DiscordMessageRequested(1001, "900", None, f"{NAME}!"))

    async def _relay(self, sender_id: int, text: str, request: str) -> int:
        stream = {"zebra four": "message-1", "zebra answers": "message-2"}.get(text, "message-5")
        requested = DiscordMessageRequested(sender_id, "900", None, text, of_message=True)
        return await self._append(stream, MessageSent(3, sender_id, text), requested, request=request)

    async def _append(self, stream: str, *events: Event, actor: int | None = None, request: str = "c") -> int:
        write = StreamWrite(stream, [event.recorded_form() for event in events], expected_version=None)
        return (await self._log.append(write, context=Context(actor, request))).first_position


ZEBRAS = ("zebediah", "zebra")


@pytest.mark.gen_test
async def test_nothing_of_an_erased_account_is_left_that_came_from_discord_or_was_to_go_there(
    commands: Commands,
    erasure: Erasure,
    log: EventLog,
    database: str,
    beside: tables.Beside,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (NAME, "bob"):
        await commands.register(name, PASSWORD, "c")
    on_discord = OnDiscord(log)
    await on_discord.happen()
    models = ReadModels(log)
    for limit in ("MAX_POSITIONS", "_RANGE"):
        monkeypatch.setattr(chat.erasure, limit, 5)

    erased = await erasure.erase_account(1000, REASON, BY)

    assert erased.mentions == (on_discord.mention, on_discord.whisper), "each of which can be erased by that"
    for mention in erased.mentions:
        await erasure.erase_message(mention, REASON, BY)
    with tables.connect(database) as connection:
        connection.execute("ANALYZE")
    await asyncio.to_thread(scrub, database, tables.READ_MODELS)
    assert places_of(database, *ZEBRAS) == []
    assert await models.discord_user_of(1000) is None
    assert await models.discord_username(78) == "nelly"
    assert await models.account_of_discord_user(78) == await models.account_by_id(1001)
    # What Discord has of it is known still, so that it goes there, too.
    assert [each.discord_message_id for each in await models.deliveries.doomed(10)] == [11, 20]
    kept = {
        event.type for event in await everything(log) if event.data is not None and event.position > on_discord.sent
    }
    assert {"DiscordMessageDelivered", "DiscordMessageReceived"} <= kept
    head = await log.head()
    for cut in ([(0, head)], tables.cut(head, range(head))):
        assert beside.project(cut) == tables.read_models(beside.connection)
    assert await asyncio.to_thread(lambda: list(check(database, projections.ALL))) == []


@pytest.mark.gen_test
async def test_the_discord_names_of_an_account_whose_erasure_was_interrupted_are_found_again(
    commands: Commands, erasure: Erasure, log: EventLog, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commands.register(NAME, PASSWORD, "c")
    on_discord = OnDiscord(log)
    await on_discord.happen()
    # As far as to the link, before the name that was seen after it.
    everybody = await everything(log)
    first = [event.position for event in everybody if event.type in ("UsernameClaimed", "AccountRegistered")][2:4]
    linked = on_discord.seen + 1
    interrupted = Erased(1000, None, (*first, linked), REASON, BY)
    await log.append(StreamWrite("account-1000", [interrupted.recorded_form()], expected_version=None), context=CONTEXT)
    assert places_of(database, "zebra.dc", "zebra.anew") != []

    await erasure.erase_account(1000, REASON, BY)
    await asyncio.to_thread(scrub, database, tables.READ_MODELS)

    assert places_of(database, "zebra.dc", "zebra.anew") == []
    assert places_of(database, "nelly") != []


@pytest.mark.gen_test
async def test_a_text_to_discord_that_is_no_message_is_erased_by_its_delivery_s_id(
    commands: Commands, erasure: Erasure, log: EventLog, models: ReadModels
) -> None:
    on_discord = OnDiscord(log)
    await on_discord.happen()

    alone = await erasure.erase_message(on_discord.alone, REASON, BY)
    relayed = await erasure.erase_message(on_discord.sent, REASON, BY)

    assert (alone.erased, relayed.erased) == (1, 3), "the message, that it is to go there, and its edit"
    assert await models.deliveries.by_id(on_discord.alone) is None
    assert await refused(erasure.erase_message(on_discord.alone, REASON, BY)) is Reason.ALREADY_ERASED
    assert await refused(erasure.erase_message(on_discord.sent, REASON, BY)) is Reason.ALREADY_ERASED
    for position in (on_discord.sent + 2, on_discord.came + 1, on_discord.seen + 1):
        assert await refused(erasure.erase_message(position, REASON, BY)) is Reason.MESSAGE_NOT_FOUND
    mention = await erasure.erase_message(on_discord.mention + 1, REASON, BY)
    assert (mention.message_id, mention.erased) == (on_discord.mention, 3), "a message by its delivery, too"


@pytest.mark.gen_test
async def test_who_is_on_discord_alone_is_erased_by_where_they_were_seen(
    commands: Commands,
    erasure: Erasure,
    log: EventLog,
    models: ReadModels,
    database: str,
    beside: tables.Beside,
) -> None:
    for name in (NAME, "bob"):
        await commands.register(name, PASSWORD, "c")
    on_discord = OnDiscord(log)
    await on_discord.happen()

    erased = await erasure.erase_message(on_discord.seen, REASON, BY)

    assert erased.erased == 3, "two names and the link"
    await asyncio.to_thread(scrub, database, tables.READ_MODELS)
    assert places_of(database, "zebra.dc", "zebra.anew") == []
    assert (await models.discord_username(77), await models.discord_user_of(1000)) == (None, None)
    assert await models.discord_username(78) == "nelly"
    head = await log.head()
    assert beside.project([(0, head)]) == tables.read_models(beside.connection)
    assert await refused(erasure.erase_message(on_discord.seen, REASON, BY)) is Reason.ALREADY_ERASED


@pytest.mark.gen_test
async def test_what_was_on_its_way_when_the_account_ended_is_erased_too(world: World, erasure: Erasure) -> None:
    await world.happen()
    late: list[asyncio.Task[object]] = []

    def send(events: object) -> None:
        # Let in before the end, and recorded only after it.
        if not late:
            sent = StreamWrite("message-late", [MessageSent(1, 1000, "zebra last").recorded_form()])
            late.append(asyncio.create_task(world.log.append(sent, context=CONTEXT)))

    world.log.subscribe(send)
    outcome = await erasure.erase_account(1000, REASON, BY)

    [recorded] = [event for event in await everything(world.log) if event.stream == "message-late"]
    assert recorded.data is None
    assert len(outcome.recorded) == 2


# --- the narrow way ----------------------------------------------------------------------------------------------

NAMED, NOT_NAMED = 1, 2
EMPTY = "data = NULL, salt = NULL, data_hash = sha256(salt || convert_to(data::text, 'UTF8'))"
OUTSIDE = [
    f"UPDATE events SET {EMPTY} WHERE position = {NOT_NAMED}",
    f"UPDATE events SET {EMPTY} WHERE position IN ({NAMED}, {NOT_NAMED})",
    f"UPDATE events SET {EMPTY} WHERE type = 'Erased'",
    f"UPDATE events SET {EMPTY}, leaf_hash = '' WHERE position = {NAMED}",
    f"UPDATE events SET {EMPTY}, metadata = '{{}}' WHERE position = {NAMED}",
    f"UPDATE events SET {EMPTY}, type = 'Other' WHERE position = {NAMED}",
    f"UPDATE events SET {EMPTY}, recorded_at = now() WHERE position = {NAMED}",
    f"UPDATE events SET {EMPTY}, position = 99 WHERE position = {NAMED}",
    f"UPDATE events SET data = NULL, salt = NULL, data_hash = 'another' WHERE position = {NAMED}",
    f"UPDATE events SET data = '{{}}' WHERE position = {NAMED}",
    f"UPDATE events SET salt = '' WHERE position = {NAMED}",
    f"UPDATE events SET stream = stream || '' WHERE position = {NAMED}",
]


@pytest.fixture
def one_named(bare_log: EventLog, database: str, io_loop: IOLoop) -> tables.Connection:
    """A database with two events, and a third that names the first and a null, which no append would leave."""
    thing = StreamWrite("things", [MessageSent(1, 1000, "x").recorded_form()], None)
    io_loop.run_sync(lambda: bare_log.append(thing, thing, context=CONTEXT))
    connection = tables.connect(database)
    connection.execute(
        "INSERT INTO events SELECT 3, 'erased', 1, 'Erased', %s, metadata, recorded_at, '', '' FROM events LIMIT 1",
        [f'{{"positions":[{NAMED},null]}}'],
    )
    return connection


@pytest.mark.parametrize("role", ["origin", "replica"])
def test_the_database_refuses_everything_but_emptying_what_is_named(one_named: tables.Connection, role: str) -> None:
    everything = "SELECT * FROM events ORDER BY position"
    with one_named as connection:
        tables.run(connection, f"SET session_replication_role = {role}")
        before = [list(map(str, row)) for row in tables.rows(connection, everything)]
        connection.execute("CREATE TEMPORARY TABLE another (type text, data json)")
        connection.execute(f"INSERT INTO another VALUES ('Erased', '{{\"positions\":[{NOT_NAMED}]}}')".encode())
        for statement in OUTSIDE:
            with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="the log is immutable"):
                connection.execute(statement.encode())
        # A session's own tables come first where no schema is named, as in the trigger.
        connection.execute("ALTER TABLE another RENAME TO events")
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="the log is immutable"):
            connection.execute(OUTSIDE[0].replace("UPDATE events", "UPDATE public.events").encode())
        connection.execute("DROP TABLE pg_temp.events")
        assert [list(map(str, row)) for row in tables.rows(connection, everything)] == before

        connection.execute(f"UPDATE events SET {EMPTY} WHERE position = {NAMED}".encode())

        assert tables.rows(connection, "SELECT position FROM events WHERE data IS NULL") == [(NAMED,)]


@pytest.mark.gen_test
async def test_an_append_that_would_erase_an_erasure_changes_nothing(
    world: World, erasure: Erasure, database: str
) -> None:
    await world.happen()
    [position] = (await erasure.erase_message(world.sent["first"], REASON, BY)).recorded

    def models() -> object:
        with tables.connect(database) as connection:
            return tables.read_models(connection)

    before = await everything(world.log), models()
    again = Erased(None, 7, (world.sent["bob's"], position), REASON, BY)
    with pytest.raises(LogError, match="the log is immutable"):
        await world.log.append(StreamWrite("again", [again.recorded_form()]), context=CONTEXT)

    assert (await everything(world.log), models()) == before


@pytest.mark.gen_test
async def test_an_erasure_goes_along_with_others_appends(world: World, erasure: Erasure) -> None:
    await world.happen()

    await asyncio.gather(
        *(world.say(world.bob, f"before {number}", f"before {number}") for number in range(5)),
        erasure.erase_message(world.sent["first"], REASON, BY),
        erasure.erase_message(world.sent["dm"], REASON, BY),
        *(world.say(world.bob, f"behind {number}", f"behind {number}") for number in range(5)),
    )

    empty = [event.position for event in await everything(world.log) if event.data is None]
    assert empty == [world.sent["first"], world.sent["dm"]]
    texts = [message.text for message in await Decoded(world.models).channel(world.bob, "den", 100)]
    assert {f"{when} {number}" for when in ("before", "behind") for number in range(5)} <= set(texts)


# --- the command line, beside a running server --------------------------------------------------------------------


@pytest.fixture
def chat_beside(io_loop: IOLoop, start_server: Callable[..., Server], database: str) -> Iterator[Chat]:
    yield from own_chat(io_loop, start_server(database_url=database))


@pytest.mark.gen_test
async def test_erasing_beside_a_running_server_ends_the_account_and_disturbs_nobody(
    chat_beside: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    async def erase(*arguments: str) -> dict[str, object]:
        line = ["erase", *arguments, "--yes", "--reason", REASON, "--database-url", chat_beside.server.database_url]
        assert await asyncio.to_thread(cli.run, line, lambda _: None) == 0
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    alice, bob = await chat_beside.person(), await chat_beside.person()
    den = await chat_beside.channel_of(alice, bob)
    hers = await chat_beside.listens(alice)
    his = await chat_beside.connected(recovery=True, token=bob.token)
    _, _, offset = await his.event()
    await alice.sends(den, "from alice")
    single = await bob.sends(den, "a slip of the tongue")
    await bob.writes_to(alice, "to alice")
    assert [(await his.event())[1]["message"] for _ in range(2)] == ["from alice", "a slip of the tongue"]

    message = await erase("--message", str(single), "--by", "a clerk")
    account = await erase("--account", alice.username)

    assert (message["erased"], message["message_id"]) == (1, single)
    assert (account["erased"], account["mentions"]) == (3, [])
    ended = await hers.end()
    assert [event[1] for event in ended.events if event[0] == "error"] == [{"message": "The token has ended!"}]
    assert (await alice.does("getchannels")).status == 401
    taken = await chat_beside.v3.call("register", username=alice.username, password=PASSWORD)
    assert (taken.status, taken.body) == (401, {"message": "User exists!"})
    assert not await chat_beside.is_online(alice)
    assert [dm["recipient"] for dm in await bob.dms()] == ["(erased account 1000)"]
    await bob.sends(den, "still here")
    assert (await his.event())[1]["message"] == "still here"
    # Who comes back is sent nothing that was erased, and misses nothing else.
    again = await chat_beside.connected(recovery=True, pid=his.pid, offset=offset)
    assert (await again.event())[1]["message"] == "still here"
    assert places_of(chat_beside.server.database_url, alice.username, "from alice", "a slip") == []
    assert [line["event"] for line in chat_beside.server.log if line["level"] in ("warning", "error")] == []


def test_erasing_asks_first_and_says_in_one_line_what_is_wrong(
    world: World, database: str, io_loop: IOLoop, capsys: pytest.CaptureFixture[str]
) -> None:
    io_loop.run_sync(world.happen)

    def tell(*arguments: str, code: int) -> str:
        assert cli.run(["erase", *arguments, "--database-url", database], lambda _: None) == code
        told = capsys.readouterr()
        assert (told.out, told.err.count("\n")) == ("", 1)
        return told.err

    reason = ["--reason", "x"]
    assert "--yes" in tell("--message", "7", *reason, code=2)
    assert "give one of" in tell(*reason, "--yes", code=2)
    assert "give one of" in tell("--account", "bob", "--message", "7", *reason, "--yes", code=2)
    assert "no such account" in tell("--account", "nobody", *reason, "--yes", code=1)
    assert "FokaBot" in tell("--account", "fokabot", *reason, "--yes", code=1)
    assert (
        cli.run(["erase", "--message", str(world.sent["dm"]), *reason, "--yes", "--database-url", database], print) == 0
    )
    assert json.loads(capsys.readouterr().out)["erased"] == 1
    assert "erased before" in tell("--message", str(world.sent["dm"]), *reason, "--yes", code=1)
    assert "reason: must not hold" in tell("--account", "bob", "--reason", "bob asked", "--yes", code=1)
