"""What the read models know of Discord: deliveries and copies, bridges, and people; and messages that were edited."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

import projections
from chat.bridging import Bridge, Copy, Delivery, Destination, DiscordUser
from chat.commands import Account, Channel
from chat.events import (
    AccountRegistered,
    ChannelBridged,
    ChannelCreated,
    ChannelUnbridged,
    DiscordLinked,
    DiscordMessageDelivered,
    DiscordMessageFailed,
    DiscordMessageReceived,
    DiscordMessageRequested,
    DiscordMessageWithdrawn,
    DiscordUnlinked,
    DiscordUserSeen,
    Erased,
    Event,
    MessageDeleted,
    MessageEdited,
    MessageSent,
)
from eventstore.events import Context, RecordedEvent, StreamWrite
from eventstore.ids import new_id
from eventstore.log import EventLog
from projections.deliveries import Deliveries
from projections.discord_users import DiscordUsers
from projections.models import ReadModels
from tests import tables
from tests.conftest import on_loop, until
from tests.stories import Step, Teller
from tests.test_projections import buffers, explainer, nodes

ALICE, BOB = 1000, 1001
DEN = 3
SQUARE, LANE, NELLY = 900, 901, 77
TO_SQUARE, TO_NELLY = Destination(SQUARE, None), Destination(None, NELLY)


@pytest.fixture
def beside(database: str) -> Iterator[tables.Beside]:
    made = tables.Beside(database)
    yield made
    made.close()


@pytest.fixture
def told_log(io_loop: IOLoop, log: EventLog) -> EventLog:
    """A log in which there are two accounts and a channel."""

    async def tell() -> None:
        for account_id, name in ((ALICE, "alice"), (BOB, "bob")):
            await append(log, AccountRegistered(account_id, name, name, None), stream=f"account-{account_id}")
        assert await append(log, ChannelCreated("den", "den", None)) == DEN

    on_loop(io_loop, tell)
    return log


async def append(log: EventLog, *events: Event, stream: str | None = None) -> int:
    """Records events in a stream; returns where the first of them stands."""
    forms = [event.recorded_form() for event in events]
    write = StreamWrite(stream or f"message-{new_id()}", forms, expected_version=None)
    return (await log.append(write, context=Context(None, "c"))).first_position


async def relay(log: EventLog, text: str, sender_id: int = ALICE) -> int:
    """A message of a bridged channel; returns its id, behind which its delivery stands."""
    requested = DiscordMessageRequested(sender_id, str(SQUARE), None, text, of_message=True)
    return await append(log, MessageSent(DEN, sender_id, text), requested)


async def ask(log: EventLog, text: str, to: Destination = TO_SQUARE, sender_id: int = ALICE) -> int:
    """A text that is no message here; returns the delivery's id."""
    channel, user = (None if each is None else str(each) for each in (to.discord_channel_id, to.discord_user_id))
    return await append(log, DiscordMessageRequested(sender_id, channel, user, text))


def taken(delivery_id: int, *ids: int, message_id: int | None = None, sender_id: int = ALICE) -> Event:
    return DiscordMessageDelivered(delivery_id, message_id, sender_id, str(SQUARE), tuple(map(str, ids)))


def copy(discord_message_id: int, origin_id: int, message_id: int | None = None, *, received: bool = False) -> Copy:
    return Copy(discord_message_id, SQUARE, origin_id, message_id, received)


def told(found: list[Delivery]) -> list[tuple[str, str]]:
    return [(each.text, each.status) for each in found]


# --- deliveries --------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_what_is_requested_waits_for_its_destination_in_order(told_log: EventLog, models: ReadModels) -> None:
    deliveries = models.deliveries
    first = await ask(told_log, "to nelly", TO_NELLY)
    message_id = await relay(told_log, "to all", BOB)
    await ask(told_log, "more")

    assert await deliveries.destinations() == [TO_NELLY, TO_SQUARE]
    assert told(await deliveries.waiting(TO_NELLY, 10)) == [("to nelly", "waiting")]
    assert told(await deliveries.waiting(TO_SQUARE, 10)) == [("to all", "waiting"), ("more", "waiting")]
    assert told(await deliveries.waiting(TO_SQUARE, 1)) == [("to all", "waiting")]
    assert await deliveries.waiting(Destination(LANE, None), 10) == []
    requested = await told_log.event_at(message_id + 1)
    assert requested is not None
    assert await deliveries.of_sender(BOB, 10) == [
        Delivery(
            *(message_id + 1, requested.stream, BOB, "bob", message_id, TO_SQUARE, "to all", requested.recorded_at),
            *(None, None, None, None, False),
        )
    ]
    assert [await deliveries.by_id(first)] == await deliveries.waiting(TO_NELLY, 1)
    assert await deliveries.by_id(message_id) is None


@pytest.mark.gen_test
async def test_what_discord_took_or_what_failed_is_settled_where_the_log_says_so(
    told_log: EventLog, models: ReadModels
) -> None:
    deliveries = models.deliveries
    one, two, three = [await ask(told_log, text) for text in ("one", "two", "three")]
    failed = await append(told_log, DiscordMessageFailed(two, None, ALICE, "no such channel"))
    delivered = await append(told_log, taken(one, 12, 11))

    found = await deliveries.of_sender(ALICE, 10)

    assert told(found) == [("one", "delivered"), ("two", "failed"), ("three", "waiting")]
    assert await deliveries.of_sender(ALICE, 2) == found[1:]
    assert (found[0].discord_message_ids, found[0].settled) == ((12, 11), delivered), "its parts, in their order"
    assert (found[1].failed, found[1].settled) == ("no such channel", failed)
    event = await told_log.event_at(delivered)
    assert event is not None
    assert found[0].settled_at == event.recorded_at
    assert [each.delivery_id for each in await deliveries.waiting(TO_SQUARE, 10)] == [three]
    assert await deliveries.missed(ALICE, 0, delivered, 10) == [found[1], found[0]], "in the order of their settling"
    assert await deliveries.missed(ALICE, failed, delivered, 10) == [found[0]]
    assert await deliveries.missed(ALICE, 0, failed, 10) == [found[1]]
    assert await deliveries.missed(ALICE, 0, delivered, 1) == [found[1]]
    assert await deliveries.missed(BOB, 0, delivered, 10) == []


@pytest.mark.gen_test
async def test_what_was_given_up_and_delivered_all_the_same_is_delivered(
    told_log: EventLog, models: ReadModels
) -> None:
    delivery_id = await ask(told_log, "late")
    await append(told_log, DiscordMessageFailed(delivery_id, None, ALICE, "took too long"))
    await append(told_log, taken(delivery_id, 11))

    [found] = await models.deliveries.of_sender(ALICE, 1)

    assert (found.status, found.failed, found.discord_message_ids) == ("delivered", None, (11,))


@pytest.mark.gen_test
async def test_what_is_deleted_before_it_is_delivered_waits_no_longer(told_log: EventLog, models: ReadModels) -> None:
    deliveries = models.deliveries
    gone = await relay(told_log, "gone")
    kept = await ask(told_log, "kept")
    # A message that is not bridged, and behind which another's delivery stands, is not that delivery's.
    beside = await append(told_log, MessageSent(DEN, ALICE, "here alone"))
    after = await ask(told_log, "after")
    assert after == beside + 1

    for message_id in (gone, beside):
        await append(told_log, MessageDeleted(message_id, ALICE))

    assert [each.delivery_id for each in await deliveries.waiting(TO_SQUARE, 10)] == [kept, after]
    assert told(await deliveries.of_sender(ALICE, 3)) == [
        ("gone", "withdrawn"),
        ("kept", "waiting"),
        ("after", "waiting"),
    ]

    # Discord had it already, and the answer came after the deletion.
    await append(told_log, taken(gone + 1, 11, message_id=gone))

    assert told(await deliveries.of_sender(ALICE, 3))[0] == ("gone", "delivered")
    assert await deliveries.doomed(10) == [copy(11, gone + 1, gone)]


# --- copies ------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_copies_of_what_is_deleted_are_doomed_until_they_are_withdrawn(
    told_log: EventLog, models: ReadModels
) -> None:
    deliveries = models.deliveries
    sent, kept = await relay(told_log, "sent"), await relay(told_log, "kept")
    came = await append(told_log, MessageSent(DEN, BOB, "came"), DiscordMessageReceived(str(SQUARE), "20"))
    await append(told_log, taken(sent + 1, 11, 12, message_id=sent))
    await append(told_log, taken(kept + 1, 13, message_id=kept))
    assert await deliveries.doomed(10) == []
    assert await deliveries.copy(12) == copy(12, sent + 1, sent)
    assert await deliveries.copy(20) == copy(20, came, came, received=True)
    assert await models.discord_copy(99) is None

    for message_id, by in ((sent, ALICE), (came, BOB)):
        await append(told_log, MessageDeleted(message_id, by))

    doomed = [copy(11, sent + 1, sent), copy(12, sent + 1, sent), copy(20, came, came, received=True)]
    assert await deliveries.doomed(10) == doomed
    assert await deliveries.doomed(1) == doomed[:1]

    await append(told_log, DiscordMessageWithdrawn(str(SQUARE), ("11", "20")))

    assert await deliveries.doomed(10) == [doomed[1]]
    assert await deliveries.copy(11) is None
    assert await deliveries.known([11, 12, 13, 20, 99]) == {12, 13}
    assert await deliveries.known([]) == set()


@pytest.mark.gen_test
async def test_what_is_deleted_and_withdrawn_at_once_leaves_no_copy(
    told_log: EventLog, models: ReadModels, beside: tables.Beside
) -> None:
    came = await append(told_log, MessageSent(DEN, BOB, "came"), DiscordMessageReceived(str(SQUARE), "20"))

    await append(told_log, MessageDeleted(came, BOB), DiscordMessageWithdrawn(str(SQUARE), ("20",)))

    assert await models.deliveries.copy(20) is None
    assert await models.messages.by_id(came) is None
    assert beside.project([(0, await told_log.head())]) == tables.read_models(beside.connection)


@pytest.mark.gen_test
async def test_the_newest_that_came_from_a_channel_come_first(told_log: EventLog, models: ReadModels) -> None:
    for channel, discord_id in ((SQUARE, "20"), (SQUARE, "22"), (LANE, "23"), (SQUARE, "21")):
        await append(told_log, MessageSent(DEN, BOB, "hi"), DiscordMessageReceived(str(channel), discord_id))
    await append(told_log, taken(await ask(told_log, "sent there"), 24))

    found = await models.deliveries.received_in(SQUARE, 2)

    assert [each.discord_message_id for each in found] == [22, 21]


@pytest.mark.gen_test
async def test_what_is_erased_is_no_delivery_and_its_copies_are_doomed_whenever_discord_answers(
    told_log: EventLog, models: ReadModels, beside: tables.Beside
) -> None:
    before, under_way, alone = await relay(told_log, "one"), await relay(told_log, "two"), await ask(told_log, "three")
    await append(told_log, taken(before + 1, 11, message_id=before))
    await append(told_log, taken(alone, 13))
    gone = (before, before + 1, under_way, under_way + 1, alone)
    stream = f"account-{ALICE}"

    await append(told_log, Erased(ALICE, None, gone[:3], "", "a test"), stream=stream)
    await append(told_log, Erased(ALICE, None, gone[3:], "", "a test"), stream=stream)
    await append(told_log, taken(under_way + 1, 12, message_id=under_way))

    assert await models.deliveries.of_sender(ALICE, 10) == []
    assert [each.discord_message_id for each in await models.deliveries.doomed(10)] == [11, 12, 13]
    head = await told_log.head()
    for cut in ([(0, head)], tables.cut(head, range(head))):
        assert beside.project(cut) == tables.read_models(beside.connection)


@pytest.mark.gen_test
async def test_stories_have_what_discord_could_get_wrong(log: EventLog, beside: tables.Beside) -> None:
    relay, edit, delete = Step("relay", 0, 0, "x"), Step("edit", 0, 0, "y"), Step("delete", 0, 1, "")
    deliver, withdraw = Step("settle", 0, 1, ""), Step("withdraw", 0, 0, "")
    bridge, see, link = Step("bridge", 0, 0, ""), Step("person", 0, 0, "nelly"), Step("person", 2, 0, "")
    await Teller().tell(
        log,
        [
            [[Step("register", 1, 0, "alice"), Step("channel", 0, 1, "den")]],
            [[relay, Step("ask", 0, 0, "z")], [bridge, bridge, bridge]],
            [[Step("settle", 0, 0, "given up"), Step("edit", 0, 0, "y"), edit]],
            # In one batch it is edited, delivered and deleted.
            [[edit], [Step("settle", 1, 1, "")], [delete]],
            [[withdraw], [see, link], [Step("receive", 0, 0, "from there")]],
            [[see], [delete]],
            [[deliver], [Step("erase", 1, 0, "")]],
            [[Step("erase", 0, 0, "")]],
        ],
    )

    assert [event.type for event in await log.read()] == [
        *("UsernameClaimed", "AccountRegistered", "ChannelCreated"),
        *("MessageSent", "DiscordMessageRequested", "DiscordMessageRequested"),
        *("ChannelBridged", "ChannelUnbridged", "ChannelBridged"),
        *("DiscordMessageFailed", "MessageEdited", "MessageEdited"),
        *("MessageEdited", "DiscordMessageDelivered", "MessageDeleted"),
        *("DiscordMessageWithdrawn", "DiscordUserSeen", "DiscordLinked", "LinkCodeUsed"),
        *("MessageSent", "DiscordMessageReceived"),
        *("DiscordUserSeen", "MessageDeleted", "DiscordMessageWithdrawn"),
        *("DiscordMessageDelivered", "Erased"),
        "Erased",
    ]
    live = tables.read_models(beside.connection)
    names = ("messages", "deliveries", "discord_copies", "bridges", "discord_watermarks")
    assert {name: len(live[name]) for name in names} == dict(zip(names, (0, 0, 3, 1, 1), strict=True))
    assert all(doomed for *_, doomed in live["discord_copies"])
    assert [row[1:3] for name in ("discord_users", "discord_links") for row in live[name]] == [(None, None)] * 2
    head = await log.head()
    for cut in ([(0, head)], tables.cut(head, range(head))):
        assert beside.project(cut) == live


# --- bridges -----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_bridge_is_read_through_what_came_last(told_log: EventLog, models: ReadModels) -> None:
    assert await models.bridge_of(DEN) is None
    await append(told_log, ChannelBridged(DEN, str(SQUARE), "50", ALICE))
    assert await models.bridges.all() == [Bridge(DEN, "den", SQUARE, 50)]

    for discord_id in ("70", "60"):
        await append(told_log, MessageSent(DEN, BOB, "hi"), DiscordMessageReceived(str(SQUARE), discord_id))

    assert await models.bridges_now() == [Bridge(DEN, "den", SQUARE, 70)]

    await append(told_log, ChannelUnbridged(DEN, str(SQUARE), ALICE))
    assert await models.bridges.all() == []

    await append(told_log, ChannelBridged(DEN, str(SQUARE), "65", ALICE))
    assert await models.bridges.all() == [Bridge(DEN, "den", SQUARE, 70)], "nothing comes twice"


@pytest.mark.gen_test
async def test_bridges_are_kept_until_one_is_made_or_undone_here_or_elsewhere(
    told_log: EventLog, models: ReadModels, database: str
) -> None:
    await told_log.listening()
    heard: list[RecordedEvent] = []
    told_log.subscribe(heard.extend)
    assert await models.bridge_of(DEN) is None

    async with EventLog(database, projections.ALL) as other:
        await append(other, ChannelBridged(DEN, str(SQUARE), "50", ALICE))
        await until(lambda: heard)
    bridge = Bridge(DEN, "den", SQUARE, 50)
    assert [await models.bridge_of(DEN), await models.bridge_to(SQUARE)] == [bridge, bridge]
    assert [await models.bridge_of(DEN + 1), await models.bridge_to(LANE)] == [None, None]
    with tables.connect(database) as connection:
        # Nobody asks the table meanwhile.
        tables.run(connection, "DELETE FROM bridges")
    assert await models.bridge_of(DEN) == bridge

    await append(told_log, ChannelUnbridged(DEN, str(SQUARE), ALICE))
    assert await models.bridge_of(DEN) is None


# --- people ------------------------------------------------------------------------------------------------------


async def see(log: EventLog, user_id: int, username: str) -> int:
    return await append(log, DiscordUserSeen(str(user_id), username), stream=f"discord-user-{user_id}")


async def link(log: EventLog, user_id: int, account_id: int) -> int:
    return await append(log, DiscordLinked(str(user_id), account_id), stream=f"discord-user-{user_id}")


@pytest.mark.gen_test
async def test_somebody_on_discord_is_found_by_the_name_seen_last_whatever_its_case(
    told_log: EventLog, models: ReadModels
) -> None:
    await see(told_log, NELLY, "nelly")
    await see(told_log, 78, "Émile")
    await see(told_log, 79, "wumpus")
    assert await models.discord_user_by_name("NELLY") == DiscordUser(NELLY, "nelly")
    assert await models.discord_user_by_name("émile") == DiscordUser(78, "Émile")

    # The name was given up by the one, and taken by the other.
    await see(told_log, NELLY, "nell")
    await see(told_log, 79, "nelly")

    assert await models.discord_user_by_name("nelly") == DiscordUser(79, "nelly")
    assert await models.discord_user_by_name("nell") == DiscordUser(NELLY, "nell")
    assert await models.discord_user_by_name("wumpus") is None
    assert [await models.discord_username(each) for each in (NELLY, 80)] == ["nell", None]


@pytest.mark.gen_test
async def test_somebody_on_discord_is_the_account_they_were_linked_to_last(
    told_log: EventLog, models: ReadModels
) -> None:
    await see(told_log, NELLY, "nelly")
    await link(told_log, NELLY, ALICE)
    await link(told_log, 78, ALICE)

    assert await models.account_of_discord_user(NELLY) == Account(ALICE, "alice")
    assert await models.discord_user_of(ALICE) == DiscordUser(78, "78"), "who was linked last, and never seen"

    await append(told_log, DiscordUnlinked("78", ALICE), stream="discord-user-78")
    assert await models.discord_user_of(ALICE) == DiscordUser(NELLY, "nelly")

    await link(told_log, NELLY, BOB)
    assert await models.discord_user_of(ALICE) is None
    assert await models.account_of_discord_user(NELLY) == Account(BOB, "bob")
    assert await models.account_of_discord_user(78) is None


@pytest.mark.gen_test
async def test_of_somebody_erased_nothing_is_known_until_they_are_seen_anew(
    told_log: EventLog, models: ReadModels, beside: tables.Beside
) -> None:
    seen, linked = await see(told_log, NELLY, "nelly"), await link(told_log, NELLY, ALICE)
    erased = Erased(ALICE, None, (seen, linked), "", "a test")
    again = DiscordUserSeen(str(NELLY), "nell")

    # In one append both touch what is known of them.
    writes = {f"account-{ALICE}": erased, f"discord-user-{NELLY}": again}
    await told_log.append(
        *(StreamWrite(stream, [event.recorded_form()], expected_version=None) for stream, event in writes.items()),
        context=Context(None, "c"),
    )

    assert await models.discord_user_of(ALICE) is None
    assert await models.discord_user_by_name("nelly") is None
    assert await models.discord_user_by_name("nell") == DiscordUser(NELLY, "nell")
    head = await told_log.head()
    for cut in ([(0, head)], tables.cut(head, range(head))):
        assert beside.project(cut) == tables.read_models(beside.connection)


# --- messages that were edited -----------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_message_is_shown_as_it_was_edited_last(told_log: EventLog, models: ReadModels) -> None:
    message_id = await append(told_log, MessageSent(DEN, ALICE, "frist"))
    other_id = await append(told_log, MessageSent(DEN, ALICE, "other"))

    await append(told_log, MessageEdited(message_id, "fist", ALICE), MessageEdited(message_id, "first", ALICE))

    shown = await models.messages.newest_in_channel(Channel(DEN, "den"), 10)
    assert [(each.message_id, each.text) for each in shown] == [(message_id, "first"), (other_id, "other")]
    assert await models.messages.newest_of_sender(ALICE, 10) == shown
    assert await models.messages.by_id(message_id) == shown[0]
    sent = await told_log.event_at(message_id)
    assert sent is not None
    assert shown[0].sent_at == sent.recorded_at

    # In one append: the deletion stands, whichever is carried out.
    await append(told_log, MessageEdited(message_id, "no more", ALICE), MessageDeleted(message_id, ALICE))
    assert await models.messages.by_id(message_id) is None


# --- plans -------------------------------------------------------------------------------------------------------


def fill(database: str) -> None:
    """40,000 deliveries, of which the newest twenty wait, in two channels and to one person."""
    count = 40_000
    with tables.connect(database) as connection:
        for statement in (
            "INSERT INTO accounts SELECT n, 'user ' || n, 'user_' || n, NULL FROM generate_series(1000, 1020) AS n",
            "INSERT INTO deliveries SELECT n, 's-' || n, 1000 + n % 20, NULL, "
            "CASE WHEN n % 10 > 0 THEN 900 + n % 2 END, "
            f"CASE WHEN n % 10 = 0 THEN 77 END, 't', now(), CASE WHEN n <= {count - 20} THEN ARRAY[n] END, NULL, "
            f"CASE WHEN n <= {count - 20} THEN n END, NULL, false FROM generate_series(1, {count}) AS n",
            "INSERT INTO discord_copies SELECT n, 900 + n % 2, n, n, n % 3 = 0, n % 4000 = 0 "
            f"FROM generate_series(1, {count}) AS n",
            "INSERT INTO discord_users SELECT 'k' || n, n, 'user ' || n, n FROM generate_series(1, 10000) AS n",
            "INSERT INTO discord_links SELECT 'k' || n, n, n, n FROM generate_series(1, 10000) AS n",
        ):
            tables.run(connection, statement)


@pytest.mark.gen_test
async def test_what_is_asked_of_40_000_deliveries_is_read_in_short_index_ranges(database: str) -> None:
    fill(database)
    for analyzed in (False, True):
        if analyzed:
            with tables.connect(database) as connection:
                tables.run(connection, "ANALYZE")
        async with explainer(database) as explaining:
            deliveries, people = Deliveries(explaining), DiscordUsers(explaining)
            await deliveries.destinations()
            for destination in (TO_SQUARE, TO_NELLY):
                await deliveries.waiting(destination, 5)
            await deliveries.of_sender(ALICE, 10)
            await deliveries.missed(ALICE, 20_000, 39_000, 10)
            await deliveries.by_id(77)
            await deliveries.doomed(10)
            await deliveries.copy(77)
            await deliveries.received_in(SQUARE, 10)
            await people.by_username("User 77")
            await people.by_account(1005)
            await people.account_of(1005)
            await people.username_of(77)

        assert len(explaining.plans) == 13
        for plan in explaining.plans:
            assert 0 < plan["Actual Rows"] <= 20
            assert "Seq Scan" not in {node["Node Type"] for node in nodes(plan)}
            assert max(node.get("Rows Removed by Filter", 0) for node in nodes(plan)) == 0
            assert buffers(plan) <= 12 * plan["Actual Rows"] + 20


@pytest.mark.gen_test
async def test_the_oldest_that_waits_is_found_at_once_however_many_others_wait_or_do_not(database: str) -> None:
    rows = (
        "INSERT INTO deliveries SELECT n, 's-' || n, 1000, NULL, CASE WHEN n % 2 > 0 THEN 900 END, "
        "CASE WHEN n % 2 = 0 THEN 77 END, 't', now(), {}, NULL, NULL, NULL, false FROM generate_series({}) AS n"
    )
    with tables.connect(database) as connection:
        connection.execute(rows.format("ARRAY[n]", "1, 10000").encode())
        tables.run(connection, "ANALYZE")
        # All that the planner has seen by then is that none waits.
        connection.execute(rows.format("NULL", "10001, 20000").encode())
        for analyzed in (False, True):
            if analyzed:
                tables.run(connection, "ANALYZE")
            async with explainer(database) as explaining:
                for destination in (TO_SQUARE, TO_NELLY):
                    await Deliveries(explaining).waiting(destination, 1)

            assert [plan["Actual Rows"] for plan in explaining.plans] == [1, 1]
            assert all(buffers(plan) <= 50 for plan in explaining.plans)
