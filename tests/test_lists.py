"""The kept lists: what people read is never older than what was acknowledged, by whichever node, and costs few queries.

Two nodes share a database. What one of them answers is held against the tables themselves.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import pytest
import sqlalchemy as sa
from tornado.httpclient import AsyncHTTPClient

import projections
from chat.commands import Account, Channel, Commands
from chat.erasure import Erasure
from chat.events import TYPES, MessageEdited
from chat.names import ANNOUNCE
from chat.passwords import PasswordHasher
from eventstore.events import Context, RecordedEvent, StreamWrite
from eventstore.log import EventLog
from eventstore.statements import Statement
from handlers.services import Services
from projections import channels, dms, lists, messages
from projections.models import ReadModels
from projections.results import ResultCache
from projections.traces import Traces
from tests import tables
from tests.conftest import OPERATOR, SECRET, Enter, on_loop, until
from tests.decoded import Decoded
from tests.tables import Outage
from tests.v3client import serving

# A node that depends on the poll for anything would not get it within the time of any test here.
NEVER = 3600.0
PASSWORD = "Passw0rd!"


class Node(NamedTuple):
    """A node of the system, as far as lists go."""

    log: EventLog
    models: ReadModels
    commands: Commands
    reading: Decoded


@pytest.fixture
def nodes(database: str, enter: Enter[EventLog], io_loop: Any, passwords: PasswordHasher) -> list[Node]:
    """Two nodes of one system that both listen."""

    def node() -> Node:
        log = enter(EventLog(database, projections.ALL, poll_seconds=NEVER))
        models = ReadModels(log)
        commands = Commands(log, models, passwords, SECRET, [OPERATOR])
        on_loop(io_loop, commands.prepare)
        on_loop(io_loop, log.listening)
        return Node(log, models, commands, Decoded(models))

    return [node(), node()]


async def den_of(node: Node) -> tuple[Account, Channel]:
    """Somebody and their channel."""
    alice = await node.commands.register("alice", PASSWORD, "c")
    return alice, await node.commands.make_channel(alice, "den", "c")


async def texts(node: Node, account: Account, count: int = 1000) -> list[str]:
    """What the channel's messages say, as the node answers it."""
    return [message.text for message in await node.reading.channel(account, "den", count)]


def keeping(models: ReadModels, log: EventLog, seconds: float) -> None:
    """Has a node keep its lists for so long, in place of the usual time."""
    models.lists._results = ResultCache(log.caught_up, seconds=seconds)


async def heard(node: Node, other: Node) -> None:
    """Returns once the node has heard of all that the other one has committed."""
    await until(lambda: node.log._feed.last >= other.log._feed.last)


class Queries:
    """Counts what a node asks the database for."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        fetch = node.log.reader.fetch

        async def counted(statement: Statement, **values: object) -> Any:
            self.texts.append(statement.text)
            return await fetch(statement, **values)

        monkeypatch.setattr(node.log.reader, "fetch", counted)

    def taken(self) -> list[str]:
        """Whether it was the head or a list, since the last look; what the feed reads does not count."""
        asked, self.texts = self.texts, []
        return ["head" if "log_head" in text else "list" for text in asked if "FROM events" not in text]


@pytest.mark.gen_test
async def test_a_list_that_nothing_has_changed_is_answered_without_asking_for_it(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = nodes
    alice, _ = await den_of(node)
    keeping(node.models, node.log, NEVER)
    await node.commands.send_message(alice, "den", "one", "c")
    await texts(node, alice)
    queries = Queries(node, monkeypatch)

    assert await texts(node, alice) == ["one"]
    assert queries.taken() == ["head"]
    assert await asyncio.gather(*(texts(node, alice) for _ in range(50))) == [["one"]] * 50
    assert len(queries.taken()) <= 2

    # What others say elsewhere is of no concern.
    bob = await other.commands.register("bob", PASSWORD, "c")
    await other.commands.make_channel(bob, "elsewhere", "c")
    await other.commands.send_message(bob, "elsewhere", "one", "c")
    await other.commands.send_direct_message(bob, "alice", "psst", "c")
    await heard(node, other)
    assert await texts(node, alice) == ["one"]
    assert "list" not in queries.taken()

    await other.commands.add_member(alice, "den", "bob", "c")
    await other.commands.send_message(bob, "den", "two", "c")
    assert await texts(node, alice) == ["one", "two"]
    assert queries.taken()[-1] == "list"


@pytest.mark.gen_test
async def test_nodes_that_write_and_read_in_turn_never_answer_what_is_out_of_date(nodes: list[Node]) -> None:
    story = Story(nodes)
    await story.begin()

    for _ in range(50):
        await story.go_on()
        await story.read()

    assert {"say", "say_in_private", "edit", "delete", "bring", "make", "erase"} <= story.done


class Story:
    """People who do all that changes a list, at any node, and are held to read at any node what the tables say."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.draw = random.Random(4)
        self.people: list[Account] = []
        self.dens: list[tuple[str, list[Account]]] = []
        self.sent: list[tuple[Account, int]] = []
        self.done: set[str] = set()
        self.numbers = itertools.count()

    @property
    def node(self) -> Node:
        """Any of them."""
        return self.draw.choice(self.nodes)

    async def begin(self) -> None:
        """There are people, and a place to talk."""
        for name in ("alice", "bob", "carol", "dave"):
            self.people.append(await self.node.commands.register(name, PASSWORD, "c"))
        await self.make()

    async def go_on(self) -> None:
        """Something happens, and is acknowledged."""
        acts = [self.say] * 6 + [self.say_in_private] * 3 + [self.edit, self.delete, self.bring, self.make] * 2
        act = self.draw.choice([*acts, self.erase])
        self.done.add(act.__name__)
        await act()

    async def say(self) -> None:
        name, members = self.draw.choice(self.dens)
        who = self.draw.choice(members)
        sent = await self.node.commands.send_message(who, name, f"message {len(self.sent)}", "c")
        self.sent.append((who, sent.first_position))

    async def say_in_private(self) -> None:
        who, to = self.draw.choice(self.people), self.draw.choice(self.people)
        sent = await self.node.commands.send_direct_message(who, to.username, f"psst {len(self.sent)}", "c")
        self.sent.append((who, sent.first_position))

    async def edit(self) -> None:
        if self.sent:
            who, message_id = self.draw.choice(self.sent)
            edited = MessageEdited(message_id, f"edited {self.draw.random()}", who.account_id).recorded_form()
            log = self.node.log
            sent = await log.event_at(message_id)
            assert sent is not None
            await log.append(StreamWrite(sent.stream, [edited], expected_version=None), context=Context(None, "c"))

    async def delete(self) -> None:
        if self.sent:
            who, message_id = self.sent.pop(self.draw.randrange(len(self.sent)))
            await self.node.commands.delete_message(who, message_id, "c")

    async def bring(self) -> None:
        name, members = self.draw.choice(self.dens)
        others = [person for person in self.people if person not in members]
        if others:
            members.append(self.draw.choice(others))
            await self.node.commands.add_member(members[0], name, members[-1].username, "c")

    async def make(self) -> None:
        who = self.draw.choice(self.people)
        name = f"den {next(self.numbers)}"
        await self.node.commands.make_channel(who, name, "c")
        self.dens.append((name, [who]))

    async def erase(self) -> None:
        node = self.node
        erasure = Erasure(node.log, node.models, Traces(node.log.reader))
        if self.sent and self.draw.random() < 0.5:
            _, message_id = self.sent.pop(self.draw.randrange(len(self.sent)))
            await erasure.erase_message(message_id, "a reason", "an operator")
        elif len(self.people) > 2:
            gone = self.people.pop()
            await erasure.erase_account(gone.account_id, "a reason", "an operator")
            self.sent = [(who, message_id) for who, message_id in self.sent if who != gone]
            left = [(name, [who for who in members if who != gone]) for name, members in self.dens]
            self.dens = [(name, members) for name, members in left if members]
            await self.make()

    async def read(self) -> None:
        """Some read everything, and it is what the tables say."""
        node, count = self.node, self.draw.choice([3, 1000])
        models = node.models
        for person in self.people[:2]:
            reads: list[tuple[Awaitable[Any], Awaitable[Any]]] = [
                (node.reading.sent_by(person, count), models.messages.newest_of_sender(person.account_id, count)),
                (node.reading.direct_messages(person, count), models.dms.newest_of_account(person.account_id, count)),
                (node.reading.channels(person), models.channels.of_account(person.account_id)),
            ]
            for name, members in self.dens:
                if person in members:
                    channel = await models.channel_by_name(name.replace(" ", "_"))
                    assert channel is not None
                    newest = models.messages.newest_in_channel(channel, count)
                    reads.append((node.reading.channel(person, name, count), newest))
            for read, truth in await asyncio.gather(*(asyncio.gather(*each) for each in reads)):
                assert read == truth


@pytest.mark.gen_test
async def test_who_reads_while_another_node_writes_finds_all_that_was_acknowledged(nodes: list[Node]) -> None:
    writer, reader = nodes
    alice, _ = await den_of(writer)
    acknowledged = 0
    is_over = False

    async def read() -> int:
        reads = 0
        while not is_over:
            before = acknowledged
            assert len(await texts(reader, alice)) >= before
            reads += 1
        return reads

    readers = [asyncio.create_task(read()) for _ in range(8)]
    for _ in range(60):
        await writer.commands.send_message(alice, "den", "hello", "c")
        acknowledged += 1
    is_over = True

    assert sum(await asyncio.gather(*readers)) > len(readers)


# --- a node that does not hear of others ----------------------------------------------------------------------------


def deafened(node: Node, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Keeps a node from hearing of other nodes' commits, until the event is set."""
    hears = asyncio.Event()
    # What the feed reads the log by; everybody else goes on.
    feed = node.log._feed
    read_page = feed._read_page

    async def late(after: int, limit: int) -> list[RecordedEvent]:
        await hears.wait()
        return await read_page(after, limit)

    monkeypatch.setattr(feed, "_read_page", late)
    return hears


@pytest.mark.gen_test
async def test_a_node_that_has_not_heard_of_a_message_yet_answers_with_it(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = nodes
    alice, _ = await den_of(writer)
    assert await texts(reader, alice) == []
    hears = deafened(reader, monkeypatch)

    await writer.commands.send_message(alice, "den", "one", "c")
    # Without the barrier it would answer from memory.
    assert await texts(reader, alice) == ["one"]
    await writer.commands.send_message(alice, "den", "two", "c")
    assert await texts(reader, alice) == ["one", "two"]

    # A reader that waits for it is told as soon as the node hears of it.
    waiting = asyncio.create_task(texts(reader, alice))
    hears.set()
    assert await waiting == ["one", "two"]
    await heard(reader, writer)
    keeping(reader.models, reader.log, NEVER)
    assert await texts(reader, alice) == ["one", "two"]
    queries = Queries(reader, monkeypatch)
    assert await texts(reader, alice) == ["one", "two"]
    assert queries.taken() == ["head"]


@pytest.mark.gen_test
async def test_a_lost_notification_costs_a_short_wait_once(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = nodes
    alice, _ = await den_of(writer)
    assert await texts(reader, alice) == []
    monkeypatch.setattr(reader.log._feed, "_furthest_notified", lambda _connection: 0)

    await writer.commands.send_message(alice, "den", "one", "c")

    assert await texts(reader, alice) == ["one"]
    # The one who waited in vain had the log read.
    await heard(reader, writer)


@pytest.mark.gen_test
async def test_a_node_whose_listener_was_killed_answers_what_others_said_since(
    nodes: list[Node], outage: Outage
) -> None:
    writer, reader = nodes
    alice, _ = await den_of(writer)
    said: list[str] = []

    for number in range(3):
        outage.end_listeners()
        for word in ("one", "two"):
            said.append(f"{number} {word}")
            await writer.commands.send_message(alice, "den", said[-1], "c")
            assert await texts(reader, alice) == said
        await asyncio.gather(*(node.log.listening() for node in nodes))
        await until(lambda: all(node.log.ready for node in nodes))


# --- what changes without an event, and bounds -----------------------------------------------------------------------


@pytest.mark.gen_test
async def test_what_changes_in_the_tables_without_an_event_shows_in_good_time(nodes: list[Node], database: str) -> None:
    node, _ = nodes
    alice, _ = await den_of(node)
    await node.commands.send_message(alice, "den", "one", "c")
    keeping(node.models, node.log, 0.3)
    assert await texts(node, alice) == ["one"]

    with tables.connect(database) as connection:
        tables.run(connection, "UPDATE messages SET text = 'by hand'")

    async with asyncio.timeout(5):
        while await texts(node, alice) != ["by hand"]:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


def test_what_is_kept_is_kept_for_two_seconds_and_in_bounds() -> None:
    cache = ResultCache(lambda: asyncio.sleep(0, True))

    assert (cache._seconds, cache._size, cache._largest) == (2.0, 16 << 20, 256 << 10)


# --- which event changes which list ----------------------------------------------------------------------------------


def event(kind: str, data: bytes | None) -> RecordedEvent:
    """An event of this type."""
    return RecordedEvent(1, "stream", 1, kind, data, b"{}", datetime.now(UTC))


def test_every_type_that_changes_a_table_behind_the_lists_changes_lists() -> None:
    changing = set().union(*(change.types for each in lists.PROJECTIONS for change in each.changes))
    precise = {"MessageSent", "DirectMessageSent", "MemberAdded", "ChannelCreated", "AccountRegistered"}

    assert precise < changing <= set(TYPES)
    for kind in TYPES:
        expected = None if kind in changing else ()
        assert lists.changed(event(kind, None)) == expected, "of what does not tell any more it may be any list"
        if kind not in precise:
            assert lists.changed(event(kind, b"{}")) == expected
    # Another shape of an event, say.
    assert lists.changed(event("MessageSent", b'{"sender_id":1}')) is None


def test_the_lists_read_no_tables_but_those_whose_changes_are_heeded() -> None:
    heeded = {table.name for each in lists.PROJECTIONS for table in each.tables}
    read = (messages._OF_CHANNEL, messages._OF_SENDER, dms._OF_ACCOUNT, channels._OF_ACCOUNT)

    found = {
        table.name
        for statement in read
        for table in sa.sql.visitors.iterate(statement._element)
        if isinstance(table, sa.Table)
    }

    assert found
    assert found <= heeded


# --- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_kept_answers_are_the_fresh_ones_to_the_byte_and_rights_are_checked_each_time(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = services.commands
    alice, bob, operator = [await commands.register(name, PASSWORD, "c") for name in ("alice", "bob", OPERATOR)]
    token, _ = await commands.generate_token(alice, "c")
    bobs, _ = await commands.generate_token(bob, "c")
    await commands.make_channel(alice, "den", "c")
    for text in ("é 😀 \\u0000 \"'\\", "x" * 4000, " "):
        await commands.send_message(alice, "den", text, "c")
        await commands.send_message(operator, ANNOUNCE, text, "c")
        await commands.send_direct_message(bob, "alice", text, "c")
    calls: dict[str, dict[str, object]] = {
        "getmessagesforeveryone": {"count": 2},
        "readmessagesfromchannel": {"name": "den", "count": "2"},
        "getmysentmessages": {},
        "getdms": {"count": 1000},
        "getchannels": {},
    }
    empty = {
        "getmysentmessages": {"message": "No sent messages!"},
        "getchannels": {"message": "You are not in any channels!"},
    }
    http = AsyncHTTPClient(force_instance=True)
    log = services.models._log
    keeping(services.models, log, NEVER)
    node = Node(log, services.models, commands, Decoded(services.models))

    async with serving(services) as port:

        async def answer(endpoint: str, token: str, **fields: object) -> tuple[int, bytes]:
            body = msgspec.json.encode({"token": token, **fields})
            url = f"http://127.0.0.1:{port}/api/v3/{endpoint}"
            found = await http.fetch(url, method="POST", body=body, raise_error=False)
            return found.code, found.body

        fresh = {endpoint: await answer(endpoint, token, **fields) for endpoint, fields in calls.items()}
        queries = Queries(node, monkeypatch)
        kept = {endpoint: await answer(endpoint, token, **fields) for endpoint, fields in calls.items()}
        assert kept == fresh
        assert "list" not in queries.taken()
        assert [status for status, _ in kept.values()] == [200] * 5

        for _ in range(2):
            status, body = await answer("readmessagesfromchannel", bobs, name="den", count=2)
            assert (status, msgspec.json.decode(body)) == (401, {"message": "You are not in this channel!"})
            for endpoint, told in empty.items():
                status, body = await answer(endpoint, bobs)
                assert (status, msgspec.json.decode(body)) == (404, told)
        await commands.generate_token(alice, "c")
        assert {(await answer(endpoint, token, **fields))[0] for endpoint, fields in calls.items()} == {401}
    http.close()
