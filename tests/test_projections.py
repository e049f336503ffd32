"""The read models: the same however the log is cut, what their queries answer, and by which plans."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tornado.ioloop import IOLoop

import projections
from chat.commands import Account, Bearer, Channel, Commands, IssuedToken
from chat.names import BOT_ID, FIRST_PERSON_ID
from chat.passwords import PasswordHasher
from chat.refusals import Reason, Refused
from chat.tokens import token_digest
from eventstore.connection import Connection
from eventstore.errors import LogError
from eventstore.events import Context, NewEvent, RecordedEvent, StreamWrite
from eventstore.log import EventLog
from eventstore.reader import Reader
from eventstore.statements import Statement
from projections.accounts import Accounts
from projections.channels import Channels
from projections.dms import DirectMessage, DirectMessages
from projections.messages import Message, Messages
from projections.models import ReadModels
from projections.moderation import Moderations
from projections.presence import Presence
from projections.tokens import Tokens
from projections.verification import Verification
from tests import tables
from tests.conftest import OPERATOR, SECRET, on_loop, until
from tests.fold import Fold, Tables
from tests.stories import STORIES, Step, Story, Teller

PASSWORD = "Passw0rd!"


@pytest.fixture
def beside(database: str) -> Iterator[tables.Beside]:
    made = tables.Beside(database)
    yield made
    made.close()


# --- one definition, two speeds ----------------------------------------------------------------------------------


def test_a_log_gives_the_same_tables_however_it_is_cut(io_loop: IOLoop, log: EventLog, beside: tables.Beside) -> None:
    async def tell(story: Story) -> tuple[Tables, int]:
        # The log stays open, since its statements are compiled once; nobody follows it, who would be confused.
        tables.empty(beside.connection)
        await Teller().tell(log, story)
        events = await log.read(limit=10_000)
        return Fold(events).tables(), len(events)

    @settings(deadline=None, max_examples=50, phases=[Phase.reuse, Phase.generate, Phase.shrink])
    @given(STORIES, st.lists(st.integers(1, 100), max_size=6))
    def check(story: Story, cuts: list[int]) -> None:
        expected, head = on_loop(io_loop, lambda: tell(story))

        assert tables.read_models(beside.connection) == expected
        assert beside.project([(0, head)]) == expected
        assert beside.project(tables.cut(head, cuts)) == expected
        assert beside.project(tables.cut(head, range(head))) == expected

    check()


@pytest.mark.gen_test
async def test_stories_have_what_cutting_could_get_wrong(log: EventLog, beside: tables.Beside) -> None:
    alice = Step("register", 1, 0, "alice")
    token, delete, close = (Step(kind, 0, 0, "") for kind in ("token", "delete", "close"))
    silence, ban = Step("moderate", 0, 0, "x" * 9), Step("moderate", 0, 2, "")
    await Teller().tell(
        log,
        [
            [[alice, token, token, Step("channel", 0, 1, "den")]],
            [[Step("message", 0, 0, "sent and deleted in one append"), delete]],
            [[Step("message", 0, 0, "in one batch")], [delete], [Step("dm", 0, 0, "to oneself")]],
            [[Step("message", 0, 0, "in different ones")]],
            [[delete], [Step("register", 0, 0, "bob"), Step("member", 0, 0, "")]],
            [[Step("open", 1, 0, "")], [close], [Step("open", 0, 0, ""), close, Step("open", 0, 0, "")]],
            [[Step("open", 1, 1, ""), Step("open", 1, 1, ""), close], [Step("revoke", 0, 0, "")]],
            [
                [silence, ban],
                [Step("moderate", 0, 3, ""), silence],
                [Step("moderate", 1, 1, ""), Step("moderate", 1, 2, "")],
            ],
            [[token, Step("revoke", 0, 0, ""), Step("moderate", 0, 1, "")]],
        ],
    )

    assert [event.type for event in await log.read()] == [
        *("UsernameClaimed", "AccountRegistered", "TokenIssued", "TokenIssued", "ChannelCreated"),
        *("MessageSent", "MessageDeleted"),
        *("MessageSent", "MessageDeleted", "DirectMessageSent"),
        "MessageSent",
        *("MessageDeleted", "UsernameClaimed", "AccountRegistered", "MemberAdded"),
        *("AccountVerified", "DeviceClaimed", "ConnectionOpened", "ConnectionClosed"),
        *("ConnectionOpened", "ConnectionClosed", "ConnectionOpened"),
        *("ConnectionOpened", "ConnectionOpened", "ConnectionClosed", "TokenRevoked"),
        *("AccountSilenced", "AccountBanned", "BanRemoved", "AccountSilenced", "SilenceRemoved", "AccountBanned"),
        *("TokenIssued", "TokenRevoked", "SilenceRemoved"),
    ]
    live = tables.read_models(beside.connection)
    rows = {"accounts": 2, "tokens": 1, "channels": 1, "members": 2, "messages": 0, "dms": 1}
    rows |= {"connections": 1, "verifications": 1, "devices": 1, "restrictions": 2}
    rows |= dict.fromkeys(("deliveries", "discord_copies", "bridges", "discord_watermarks"), 0)
    rows |= dict.fromkeys(("discord_users", "discord_links"), 0)
    assert {name: len(found) for name, found in live.items()} == rows
    assert live["tokens"] == [(1000, 5, None)]
    [(connection_id, *_, version)] = live["connections"]
    assert (connection_id, version) == ("c0", 5)
    [(_, is_banned, silenced_until), (_, other_is_banned, _)] = live["restrictions"]
    # The last word on the ban was spoken in the batch before, that on the silence in this one.
    assert (is_banned, silenced_until) == (False, (await log.read())[-1].recorded_at)
    assert other_is_banned


@pytest.mark.gen_test
async def test_an_event_of_no_interest_changes_nothing(log: EventLog, database: str) -> None:
    await log.append(
        StreamWrite("s", [NewEvent("NeverHeardOf", b'{"account_id":1000,"text":"x","message_id":1}')]),
        context=Context(None, "c"),
    )

    with tables.connect(database) as connection:
        assert not any(tables.read_models(connection).values())


# --- queries: commands in, views out -----------------------------------------------------------------------------


async def people(commands: Commands, *names: str) -> list[Account]:
    return [await commands.register(name, PASSWORD, "c") for name in names]


async def say(commands: Commands, sender: Account, channel: str, *texts: str) -> list[int]:
    return [(await commands.send_message(sender, channel, text, "c")).first_position for text in texts]


async def write_to(commands: Commands, sender: Account, recipient: Account, *texts: str) -> list[int]:
    sent = [await commands.send_direct_message(sender, recipient.username, text, "c") for text in texts]
    return [appended.first_position for appended in sent]


@pytest.mark.gen_test
async def test_an_account_is_found_by_its_safe_name(commands: Commands, models: ReadModels) -> None:
    alice, bob = await people(commands, "Al Ice", "bob")

    assert (alice, bob) == (Account(FIRST_PERSON_ID, "Al Ice"), Account(FIRST_PERSON_ID + 1, "bob"))
    assert await models.accounts.by_name("al_ice") == alice
    assert await models.accounts.by_name("fokabot") == Account(BOT_ID, "FokaBot")
    assert await models.accounts.by_name("Al Ice") is None
    assert await models.accounts.by_name("nobody") is None
    for account_id, found in ((alice.account_id, alice), (BOT_ID, Account(BOT_ID, "FokaBot")), (77, None)):
        assert await models.accounts.by_id(account_id) == found
        assert [await models.account_by_id(account_id) for _ in range(2)] == [found] * 2


@pytest.mark.gen_test
async def test_credentials_hold_the_password_s_hash_and_the_bot_s_none(commands: Commands, models: ReadModels) -> None:
    [alice] = await people(commands, "alice")

    found = await models.accounts.credentials("alice")
    of_the_bot = await models.accounts.credentials("fokabot")

    assert found is not None
    assert found.account == alice
    assert (found.password_hash or "").startswith("$2b$04$")
    assert of_the_bot is not None
    assert of_the_bot.password_hash is None
    assert await models.accounts.credentials("nobody") is None


@pytest.mark.gen_test
async def test_people_are_counted_from_1000_though_the_bot_is_there_before_them(
    commands: Commands, models: ReadModels
) -> None:
    assert await models.accounts.next_id() == 1000
    await people(commands, "alice", "bob")
    assert await models.accounts.next_id() == 1002


@pytest.mark.gen_test
async def test_an_account_has_its_newest_token_only(commands: Commands, models: ReadModels) -> None:
    alice, bob = await people(commands, "alice", "bob")
    assert await models.tokens.of_account(alice.account_id) is None

    tokens = [(await commands.generate_token(alice, "c"))[0] for _ in range(3)]
    of_bob, _ = await commands.generate_token(bob, "c")

    assert await models.tokens.of_account(alice.account_id) == IssuedToken(3, token_digest(tokens[2]))
    found = [await models.tokens.bearer(token_digest(token)) for token in [*tokens, of_bob, "no token"]]
    assert found == [None, None, Bearer(alice, 3), Bearer(bob, 1), None]
    assert await commands.bearer(tokens[2]) == Bearer(alice, 3)
    for nobody_s in (*tokens[:2], "no token"):
        with pytest.raises(Refused) as refused:
            await commands.bearer(nobody_s)
        assert refused.value.reason is Reason.INVALID_TOKEN


@pytest.mark.gen_test
async def test_a_channel_is_found_by_its_safe_name_and_is_called_as_it_was_made(
    commands: Commands, models: ReadModels
) -> None:
    [alice] = await people(commands, "alice")

    den = await commands.make_channel(alice, "#The Den", "c")

    assert await models.channels.by_name("the_den") == den == Channel(den.channel_id, "The Den")
    assert await models.channels.by_name("announce") is not None
    assert await models.channels.by_name("the den") is None
    for channel_id, found in ((den.channel_id, den), (den.channel_id + 1, None)):
        assert await models.channels.by_id(channel_id) == found
        assert [await models.channel_by_id(channel_id) for _ in range(2)] == [found] * 2


@pytest.mark.gen_test
async def test_an_account_s_channels_come_in_the_order_in_which_it_came_to_them(
    commands: Commands, models: ReadModels
) -> None:
    alice, bob = await people(commands, "alice", "bob")
    first = await commands.make_channel(alice, "first", "c")
    second = await commands.make_channel(bob, "second", "c")
    third = await commands.make_channel(alice, "third", "c")
    await commands.add_member(alice, "third", "bob", "c")
    await commands.add_member(alice, "first", "bob", "c")

    assert await models.channels.of_account(alice.account_id) == [first, third]
    assert await models.channels.of_account(bob.account_id) == [second, third, first]
    assert await models.channels.of_account(BOT_ID) == []
    memberships = await models.channels.memberships(bob.account_id)
    assert [channel for channel, _ in memberships] == [second, third, first]
    assert [since for _, since in memberships] == [second.channel_id, third.channel_id + 1, third.channel_id + 2]
    assert await models.channels.is_member(first.channel_id, bob.account_id)
    assert not await models.channels.is_member(second.channel_id, alice.account_id)


@pytest.mark.gen_test
async def test_a_channel_s_newest_messages_come_oldest_first(commands: Commands, models: ReadModels) -> None:
    alice, bob = await people(commands, "alice", "bob")
    den = await commands.make_channel(alice, "den", "c")
    await commands.make_channel(alice, "other", "c")
    await commands.add_member(alice, "den", "bob", "c")
    one, two = await say(commands, alice, "den", "one", "two")
    await say(commands, alice, "other", "elsewhere")
    [three] = await say(commands, bob, "den", 'three é "\\')

    found = await models.messages.newest_in_channel(den, 10)

    assert [(each.message_id, each.sender, each.text, each.channel) for each in found] == [
        (one, "alice", "one", "den"),
        (two, "alice", "two", "den"),
        (three, "bob", 'three é "\\', "den"),
    ]
    assert await models.messages.newest_in_channel(den, 2) == found[1:]
    assert await models.messages.newest_in_channel(Channel(den.channel_id + 999, "none"), 2) == []
    assert await models.messages.by_id(two) == found[1]


@pytest.mark.gen_test
async def test_what_somebody_missed_is_what_they_could_read_oldest_first(
    commands: Commands, models: ReadModels, log: EventLog
) -> None:
    alice, bob, operator = await people(commands, "alice", "bob", OPERATOR)
    for channel in ("den", "lair", "closed"):
        await commands.make_channel(alice, channel, "c")
    await say(commands, alice, "den", "before bob came")
    await commands.add_member(alice, "den", "bob", "c")
    await commands.add_member(alice, "lair", "bob", "c")
    one, gone = await say(commands, alice, "den", "one", "gone")
    [two] = await say(commands, operator, "announce", "two")
    await say(commands, alice, "closed", "not for bob")
    [three] = await say(commands, bob, "lair", "three")
    await write_to(commands, alice, bob, "directly")
    [four] = await say(commands, alice, "den", "four")
    await commands.delete_message(alice, gone, "c")
    head = await log.head()

    found = await models.messages.missed(bob.account_id, 0, head, 10)

    assert [(each.message_id, each.sender, each.text, each.channel) for each in found] == [
        (one, "alice", "one", "den"),
        (two, OPERATOR, "two", "announce"),
        (three, "bob", "three", "lair"),
        (four, "alice", "four", "den"),
    ]
    assert found[0] == await models.messages.by_id(one)
    assert await models.messages.missed(bob.account_id, one, three, 10) == found[1:3]
    assert await models.messages.missed(bob.account_id, one - 1, head, 2) == found[:2]
    assert await models.messages.missed(bob.account_id, four, head, 10) == []
    assert await models.messages.missed(77, 0, head, 10) == [found[1]]


@pytest.mark.gen_test
async def test_direct_messages_that_somebody_missed_are_those_received(
    commands: Commands, models: ReadModels, log: EventLog
) -> None:
    alice, bob = await people(commands, "alice", "bob")
    one, gone = await write_to(commands, alice, bob, "one", "gone")
    await write_to(commands, bob, alice, "sent")
    [two] = await write_to(commands, bob, bob, "to himself")
    [three] = await write_to(commands, alice, bob, "three")
    await commands.delete_message(alice, gone, "c")
    head = await log.head()

    found = await models.dms.missed(bob.account_id, 0, head, 10)

    assert [each.message_id for each in found] == [one, two, three]
    assert found[0] == await models.dms.by_id(one)
    assert await models.dms.missed(bob.account_id, one, two, 10) == found[1:2]
    assert await models.dms.missed(bob.account_id, 0, head, 2) == found[:2]
    assert await models.dms.missed(77, 0, head, 2) == []


@pytest.mark.gen_test
async def test_a_message_s_time_is_that_of_its_event(commands: Commands, models: ReadModels, log: EventLog) -> None:
    [alice] = await people(commands, "alice")
    den = await commands.make_channel(alice, "den", "c")
    [message_id] = await say(commands, alice, "den", "hello")

    event = await log.event_at(message_id)

    assert event is not None
    assert await models.messages.by_id(message_id) == Message(
        message_id, "alice", "hello", "den", event.recorded_at, den.channel_id, alice.account_id
    )


@pytest.mark.gen_test
async def test_a_sender_s_newest_messages_come_from_all_channels_but_not_from_direct_ones(
    commands: Commands, models: ReadModels
) -> None:
    alice, bob = await people(commands, "alice", "bob")
    for channel in ("den", "lair"):
        await commands.make_channel(alice, channel, "c")
    await commands.add_member(alice, "den", "bob", "c")
    sent = [*await say(commands, alice, "den", "one"), *await say(commands, alice, "lair", "two")]
    await say(commands, bob, "den", "not hers")
    await write_to(commands, alice, bob, "directly")
    sent += await say(commands, alice, "den", "three")

    found = await models.messages.newest_of_sender(alice.account_id, 10)

    assert [each.message_id for each in found] == sent
    assert [each.channel for each in found] == ["den", "lair", "den"]
    assert await models.messages.newest_of_sender(alice.account_id, 2) == found[1:]


@pytest.mark.gen_test
async def test_direct_messages_are_those_sent_and_received_each_of_them_once(
    commands: Commands, models: ReadModels
) -> None:
    alice, bob, carol = await people(commands, "alice", "bob", "carol")
    [to_bob] = await write_to(commands, alice, bob, "to bob")
    [to_herself] = await write_to(commands, alice, alice, "to herself")
    await write_to(commands, bob, carol, "not hers")
    [from_bob] = await write_to(commands, bob, alice, "from bob")
    [from_carol] = await write_to(commands, carol, alice, "from carol")

    found = await models.dms.newest_of_account(alice.account_id, 10)

    assert [(each.message_id, each.sender, each.recipient, each.text) for each in found] == [
        (to_bob, "alice", "bob", "to bob"),
        (to_herself, "alice", "alice", "to herself"),
        (from_bob, "bob", "alice", "from bob"),
        (from_carol, "carol", "alice", "from carol"),
    ]
    for count in range(1, 5):
        assert await models.dms.newest_of_account(alice.account_id, count) == found[-count:]
    assert await models.dms.by_id(from_bob) == found[2]
    assert isinstance(found[2], DirectMessage)
    assert (found[2].sender_id, found[2].recipient_id) == (bob.account_id, alice.account_id)


@pytest.mark.gen_test
async def test_a_deleted_message_of_either_kind_is_in_no_view(commands: Commands, models: ReadModels) -> None:
    alice, bob = await people(commands, "alice", "bob")
    den = await commands.make_channel(alice, "den", "c")
    kept, gone = await say(commands, alice, "den", "kept", "gone")
    direct_kept, direct_gone = await write_to(commands, alice, bob, "kept", "gone")

    await commands.delete_message(alice, gone, "c")
    await commands.delete_message(alice, direct_gone, "c")

    assert [each.message_id for each in await models.messages.newest_in_channel(den, 10)] == [kept]
    assert [each.message_id for each in await models.messages.newest_of_sender(alice.account_id, 10)] == [kept]
    assert [each.message_id for each in await models.dms.newest_of_account(bob.account_id, 10)] == [direct_kept]
    assert await models.messages.by_id(gone) is None
    assert await models.dms.by_id(direct_gone) is None


@pytest.mark.gen_test
async def test_messages_and_direct_messages_are_not_taken_for_each_other(
    commands: Commands, models: ReadModels
) -> None:
    alice, bob = await people(commands, "alice", "bob")
    await commands.make_channel(alice, "den", "c")
    [message_id] = await say(commands, alice, "den", "to all")
    [direct_id] = await write_to(commands, alice, bob, "to bob")

    assert await models.dms.by_id(message_id) is None
    assert await models.messages.by_id(direct_id) is None


# --- what the caches may not do ----------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_token_that_another_process_ended_is_good_no_longer(
    commands: Commands, models: ReadModels, passwords: PasswordHasher, log: EventLog, database: str
) -> None:
    await log.listening()
    [alice] = await people(commands, "alice")
    token, _ = await commands.generate_token(alice, "c")
    digest = token_digest(token)
    assert await models.bearer_of_token(digest) == await models.bearer_of_token(digest) == Bearer(alice, 1)
    heard: list[RecordedEvent] = []
    log.subscribe(heard.extend)

    async with EventLog(database, projections.ALL) as other:
        await Commands(other, ReadModels(other), passwords, SECRET).generate_token(alice, "c")
        await until(lambda: heard)

    assert await models.bearer_of_token(digest) is None


# --- plans -------------------------------------------------------------------------------------------------------

LARGE = 210_000
BUSY, QUIET = 10, 11
WRITER, RARE = 1000, 1011


def fill(database: str) -> None:
    """A channel of 200,000 messages beside a quiet one, people who write all the time and one who hardly ever does."""
    with tables.connect(database) as connection:
        for statement in (
            "INSERT INTO accounts SELECT n, 'user ' || n, 'user_' || n, NULL FROM generate_series(1000, 1020) AS n",
            "INSERT INTO channels SELECT n, 'channel ' || n, 'channel_' || n FROM generate_series(10, 11) AS n",
            "INSERT INTO members SELECT c, n, n FROM generate_series(10, 11) AS c, generate_series(1000, 1020) AS n",
            # The quiet channel's messages, and those of the one who writes rarely, are all among the oldest ones.
            "INSERT INTO messages SELECT n, CASE WHEN n <= 60 THEN 11 ELSE 10 END, "
            f"CASE WHEN n <= 60 THEN 1011 ELSE 1000 + n % 10 END, 'message ' || n, now() "
            f"FROM generate_series(1, {LARGE}) AS n",
            "INSERT INTO dms SELECT n, CASE WHEN n <= 60 THEN 1011 ELSE 1000 + n % 10 END, 1000 + (n + 1) % 7, "
            f"'message ' || n, now() FROM generate_series(1, {LARGE}) AS n",
            "INSERT INTO connections SELECT 'c' || n, n, 'node-' || n % 5000, n, 1 FROM generate_series(1, 10000) AS n",
            "INSERT INTO verifications SELECT n, false FROM generate_series(1, 10000) AS n",
            "INSERT INTO devices SELECT 'digest-' || n, n FROM generate_series(1, 10000) AS n",
            "INSERT INTO restrictions SELECT n, true, NULL FROM generate_series(1, 10000) AS n",
        ):
            tables.run(connection, statement)


class Explainer(Reader):
    """Explains statements by running them, as a connection of the log plans them; answers nothing."""

    def __init__(self, connection: Connection) -> None:
        self._explaining = connection
        self.plans: list[dict[str, Any]] = []

    async def fetch(self, statement: Statement, **values: object) -> list[tuple[Any, ...]]:
        name = f"explained_{len(self.plans)}"
        given = ", ".join(f"'{values[parameter]}'" for parameter in statement.names)
        await self._explaining.fetch(f"PREPARE {name} AS {statement.text}", [])
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {name}{f'({given})' if given else ''}"
        [[[explained]]] = await self._explaining.fetch(explain, [])
        self.plans.append(explained["Plan"])
        return []


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def buffers(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@asynccontextmanager
async def explainer(database: str) -> AsyncIterator[Explainer]:
    connection = await Connection.open(database)
    try:
        yield Explainer(connection)
    finally:
        await connection.close()


@pytest.mark.gen_test
async def test_what_is_asked_of_200_000_messages_is_read_in_short_index_ranges(database: str) -> None:
    fill(database)
    for analyzed in (False, True):
        if analyzed:
            with tables.connect(database) as connection:
                tables.run(connection, "ANALYZE")
        await assert_that_one_thing_is_found_by_few_pages(database)
        for count in (1, 50, 1000):
            async with explainer(database) as explaining:
                messages, dms = Messages(explaining), DirectMessages(explaining)
                for channel_id in (BUSY, QUIET):
                    await messages.newest_in_channel(Channel(channel_id, "den"), count)
                for account_id in (WRITER, RARE):
                    await messages.newest_of_sender(account_id, count)
                    await dms.newest_of_account(account_id, count)
                for after in (0, LARGE // 2):
                    await dms.missed(WRITER, after, LARGE, count)
            for plan in explaining.plans:
                assert_short(plan, at_most=count)


@pytest.mark.gen_test
async def test_what_a_member_of_fifty_channels_missed_is_read_in_as_many_short_index_ranges(database: str) -> None:
    with tables.connect(database) as connection:
        for statement in (
            "INSERT INTO accounts SELECT n, 'user ' || n, 'user_' || n, NULL FROM generate_series(1000, 1020) AS n",
            "INSERT INTO channels SELECT n, 'channel ' || n, 'channel_' || n FROM generate_series(2, 100) AS n",
            "INSERT INTO channels VALUES (1, 'announce', 'announce')",
            "INSERT INTO members SELECT n, 1000, 50000 FROM generate_series(2, 51) AS n",
            "INSERT INTO members SELECT n, 1001, 1 FROM generate_series(2, 100) AS n",
            "INSERT INTO messages SELECT n, 1 + n % 100, 1000 + n % 20, 'message ' || n, now() "
            "FROM generate_series(1, 100000) AS n",
        ):
            tables.run(connection, statement)
    for analyzed in (False, True):
        if analyzed:
            with tables.connect(database) as connection:
                tables.run(connection, "ANALYZE")
        async with explainer(database) as explaining:
            for after, count in ((0, 10), (99_000, 1000), (99_990, 1000), (100_000, 1000)):
                await Messages(explaining).missed(1000, after, 100_000, count)

        for plan, of_each, rows in zip(explaining.plans, (10, 10, 1, 0), (10, 510, 1, 0), strict=True):
            assert plan["Actual Rows"] == rows
            assert not {"Seq Scan", "Hash Join"} & {node["Node Type"] for node in nodes(plan)}
            assert max(node.get("Rows Removed by Filter", 0) for node in nodes(plan)) == 0
            # Of each channel an index of three levels and a page for each row; of a message the names with it.
            assert buffers(plan) <= 51 * (4 + of_each) + 6 * rows + 80


async def assert_that_one_thing_is_found_by_few_pages(database: str) -> None:
    async with explainer(database) as explaining:
        accounts, channels, tokens = Accounts(explaining), Channels(explaining), Tokens(explaining)
        await accounts.by_name("user_1005")
        await accounts.next_id()
        await tokens.of_account(1005)
        await tokens.bearer("digest")
        await channels.by_name("channel_10")
        await channels.is_member(10, 1005)
        await channels.of_account(1005)
        await channels.by_id(10)
        await accounts.by_id(1005)
        await Messages(explaining).by_id(1234)
        await DirectMessages(explaining).by_id(1234)
        await Presence(explaining).is_online(1005)
        await Presence(explaining).open_of_node("node-7")
        await Verification(explaining).status(1005)
        await Verification(explaining).account_of_device("digest-1005")
        await Moderations(explaining).restrictions(1005)

    assert len(explaining.plans) == 16
    for plan in explaining.plans:
        assert "Seq Scan" not in {node["Node Type"] for node in nodes(plan)}
        assert buffers(plan) <= 20


def assert_short(plan: dict[str, Any], *, at_most: int) -> None:
    """The plan read no more than the rows that it was asked for, and what belongs to them, by indexes alone."""
    rows = int(plan["Actual Rows"])
    assert 0 < rows <= at_most
    for node in nodes(plan):
        assert node["Node Type"] != "Seq Scan"
        # Within reach of two ranges, one for each direction of direct messages.
        assert node["Actual Rows"] <= 2 * at_most
        assert node.get("Rows Removed by Filter", 0) == 0
    # A row, its sender's name and its channel's or its recipient's: each an index of two or three levels, and a page.
    assert buffers(plan) <= 12 * rows + 20


@pytest.mark.gen_test
async def test_a_query_of_a_table_that_is_not_there_is_an_error_that_says_what_to_do(
    log: EventLog, database: str
) -> None:
    with tables.connect(database) as connection:
        tables.run(connection, "DROP TABLE dms")

    with pytest.raises(LogError, match="no log yet, or an older one"):
        await DirectMessages(log.reader).by_id(1)
    assert await Messages(log.reader).by_id(1) is None
