"""Reading the minutes: `asof`, `diff`, `history` and `trace`, each as its command line is answered."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import projections
from audit import cli
from audit.lines import clock
from audit.places import parse_moment, parse_place
from chat.commands import Commands
from chat.connections import Connections
from chat.events import (
    DirectMessageSent,
    DiscordMessageDelivered,
    DiscordMessageFailed,
    DiscordMessageRequested,
    DiscordMessageWithdrawn,
    Erased,
    MessageEdited,
    MessageSent,
)
from chat.moderation import Moderation
from chat.names import BOT_ID
from chat.passwords import PasswordHasher
from eventstore.canonical import encode
from eventstore.events import Context, NewEvent, RecordedEvent, StreamWrite
from eventstore.log import EventLog
from eventstore.merkle import rfc3339
from projections.models import ReadModels
from settings import Settings
from tests.conftest import OPERATOR, SECRET, own_database
from tests.test_travel import role

PASSWORD = "Passw0rd!"
SOURCE = "203.0.113.7"
CONTEXT = Context(None, "c")


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        assert (self.code, self.err) == (0, ""), self
        return [json.loads(line) for line in self.out.splitlines()]


Ask = Callable[..., Done]


class Story(NamedTuple):
    """A day of a log: where its parts stand."""

    database: str
    events: list[RecordedEvent]
    registered: int  # Bob's
    den: int
    joined: int  # Bob to the den
    hello: int  # Alice to the den, deleted later
    psst: int  # Alice to Bob
    opened: int  # Bob's connection
    silenced: int  # Bob
    deleted: int  # hello
    closed: int  # Bob's connection
    late: int  # Bob to the den

    def append(self, write: StreamWrite) -> int:
        """Goes on with it."""

        async def append() -> int:
            async with EventLog(self.database, projections.ALL) as log:
                return (await log.append(write, context=CONTEXT)).first_position

        return asyncio.run(append())

    def erase(self, *positions: int, message_id: int | None = None, account_id: int | None = None) -> int:
        """Erases events, and returns the position of the event that says so."""
        stream = self.events[positions[0] - 1].stream if message_id else f"account-{account_id}"
        erased = Erased(account_id, message_id, positions, "asked for", "the operator")
        return self.append(StreamWrite(stream, [erased.recorded_form()], expected_version=None))


async def tell(database: str) -> Story:
    passwords = PasswordHasher(cost=4)
    async with EventLog(database, projections.ALL) as log:
        models = ReadModels(log)
        commands = Commands(log, models, passwords, SECRET, operators=[OPERATOR])
        connections = Connections(log, models, SECRET, "node")
        moderation = Moderation(log, models, [OPERATOR])
        await commands.prepare()
        operator = await commands.register(OPERATOR, PASSWORD, "c")
        alice = await commands.register("Alice", PASSWORD, "c")
        bob = await commands.register("Bob", PASSWORD, "c")
        registered = await log.head()
        den = (await commands.make_channel(alice, "den", "c")).channel_id
        await commands.add_member(alice, "den", "Bob", "c")
        joined = await log.head()
        hello = await commands.send_message(alice, "den", "Hello", "request 7", source_address=SOURCE)
        psst = await commands.send_direct_message(alice, "Bob", "Psst", "c")
        opened = await connections.open(bob, 1, "c1", "c", device="phone")
        await moderation.silence(operator, "Bob", 3600, "spam", "c")
        silenced = await log.head()
        await commands.delete_message(alice, hello.first_position, "request 8")
        deleted = await log.head()
        await connections.close([("c1", bob.account_id, 1)], "gone")
        closed = await log.head()
        await moderation.remove_silence(operator, "Bob", "c")
        late = await commands.send_message(bob, "den", "Too late", "c")
        events = await log.read()
    passwords.close()
    sent = hello.first_position, psst.first_position
    parts = (*sent, opened, silenced, deleted, closed, late.first_position)
    return Story(database, events, registered, den, joined, *parts)


@pytest.fixture(scope="module")
def story(cluster: str) -> Iterator[Story]:
    """A story to be read by all tests."""
    for database in own_database(cluster):
        yield asyncio.run(tell(database))


@pytest.fixture
def fresh(database: str) -> Story:
    """The same story for one test, that goes on with it."""
    return asyncio.run(tell(database))


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Ask]:
    """Makes what runs a command line in this process, on the database of this connection string."""

    def on(database: str) -> Ask:
        def ask(*arguments: object) -> Done:
            monkeypatch.setattr(cli, "configure_logs", len)
            monkeypatch.setenv("MINUTEBOOK_DATABASE_URL", database)
            monkeypatch.setenv("COLUMNS", "200")
            code = cli.run([str(argument) for argument in arguments], _must_not_run)
            told = capsys.readouterr()
            return Done(code, told.out, told.err)

        return ask

    return on


@pytest.fixture
def ask(asking: Callable[[str], Ask], story: Story) -> Ask:
    """Runs a command line on the story that is only read."""
    return asking(story.database)


@pytest.fixture
def ask_fresh(asking: Callable[[str], Ask], database: str) -> Ask:
    """Runs a command line on the test's own database."""
    return asking(database)


def _must_not_run(_settings: Settings) -> None:
    pytest.fail("the server was run")


# --- places ----------------------------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22T14:00:00Z", datetime(2026, 11, 22, 14, tzinfo=UTC)),
        ("2026-11-22T14:00:00.25+02:00", datetime(2026, 11, 22, 12, 0, 0, 250_000, tzinfo=UTC)),
        ("2026-11-22 14:00", datetime(2026, 11, 22, 14, tzinfo=UTC)),
        ("2026-11-22", datetime(2026, 11, 22, tzinfo=UTC)),
        ("90s", NOW - timedelta(seconds=90)),
        ("10m", NOW - timedelta(minutes=10)),
        ("2h", NOW - timedelta(hours=2)),
        ("3d", NOW - timedelta(days=3)),
    ],
)
def test_a_moment_is_rfc_3339_or_how_long_ago(text: str, moment: datetime) -> None:
    assert parse_moment(text, NOW) == moment
    assert parse_place(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "x", "-1", "10", "10x", "m", "2026-13-01", "999999d", "0001-01-01T00:00+23:00"])
def test_what_is_no_moment_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time: give RFC 3339, .*10m"):
        parse_moment(text, NOW)


def test_digits_are_a_position() -> None:
    assert (parse_place("0", NOW), parse_place("20261122", NOW)) == (0, 20261122)
    with pytest.raises(ValueError, match="no position of any log"):
        parse_place("9" * 19, NOW)


# --- asof ------------------------------------------------------------------------------------------------------------


def test_a_deleted_message_is_shown_while_it_stood(ask: Ask, story: Story) -> None:
    def texts(position: int) -> list[str]:
        return [row["text"] for row in ask("asof", "messages", "den", "--position", position).rows]

    assert texts(story.joined) == []
    assert texts(story.deleted - 1) == ["Hello"]
    assert texts(story.deleted) == []
    assert texts(story.late) == ["Too late"]


def test_an_edited_message_is_shown_as_it_read_then_until_it_is_erased(ask_fresh: Ask, fresh: Story) -> None:
    def texts(position: int) -> list[str]:
        return [row["text"] for row in ask_fresh("asof", "messages", "den", "--position", position).rows]

    stream = fresh.events[fresh.late - 1].stream
    edits = [
        fresh.append(
            StreamWrite(stream, [MessageEdited(fresh.late, text, 1002).recorded_form()], expected_version=None)
        )
        for text in ("Not too late", "In time")
    ]

    assert [texts(position) for position in (fresh.late, *edits)] == [["Too late"], ["Not too late"], ["In time"]]
    shown = ask_fresh("diff", fresh.late, edits[1], "--no-json").out.splitlines()
    assert f'~ messages  message_id={fresh.late} text: "Too late" → "In time" edited: null → {edits[1]}' in shown

    erased = fresh.erase(fresh.late, *edits, message_id=fresh.late)
    assert [texts(position) for position in (fresh.late, *edits, erased)] == [[]] * 4


def test_a_row_of_the_past_says_who_and_when(ask: Ask, story: Story) -> None:
    sent = rfc3339(story.events[story.hello - 1].recorded_at)
    row = {"message_id": story.hello, "sent_at": sent, "sender": "Alice", "text": "Hello"}
    assert ask("asof", "messages", "#den", "--position", story.hello).rows == [row]

    sent = rfc3339(story.events[story.psst - 1].recorded_at)
    row = {"message_id": story.psst, "sent_at": sent, "sender": "Alice", "recipient": "Bob", "text": "Psst"}
    for name in ("Bob", "alice", 1002):
        assert ask("asof", "dms", name, "--position", story.psst).rows == [row]


def test_channels_and_their_members_are_those_of_then(ask: Ask, story: Story) -> None:
    def channels(position: int) -> list[tuple[str, int]]:
        return [(row["name"], row["members"]) for row in ask("asof", "channels", "--position", position).rows]

    assert channels(0) == []
    assert channels(story.den - 1) == [("announce", 0)]
    assert channels(story.den) == [("announce", 0), ("den", 1)]
    assert channels(story.joined) == [("announce", 0), ("den", 2)]
    assert ask("asof", "members", "den", "--position", story.joined - 1).rows == [
        {"account_id": 1001, "username": "Alice", "since_position": story.den}
    ]
    members = ask("asof", "members", "den", "--position", story.joined).rows
    assert [(row["username"], row["since_position"]) for row in members] == [
        ("Alice", story.den),
        ("Bob", story.joined),
    ]


def test_online_are_those_whose_connections_stood_open_and_the_bot(ask: Ask, story: Story) -> None:
    bot = {"account_id": BOT_ID, "username": "FokaBot", "connections": 0, "since_position": None}
    bob = {"account_id": 1002, "username": "Bob", "connections": 1, "since_position": story.opened}

    assert ask("asof", "online", "--position", story.opened - 1).rows == [bot]
    assert ask("asof", "online", "--position", story.opened).rows == [bot, bob]
    assert ask("asof", "online", "--position", story.closed).rows == [bot]


def test_an_account_is_what_it_was(ask: Ask, story: Story) -> None:
    until = story.events[story.silenced - 1].recorded_at + timedelta(hours=1)
    then = {
        "account_id": 1002,
        "username": "Bob",
        "online": True,
        "banned": False,
        "silenced_until": rfc3339(until),
        "verified": "yes",
        "channels": ["den"],
    }
    assert ask("asof", "account", "bob", "--position", story.silenced).rows == [then]
    now = {**then, "online": False, "silenced_until": None}
    assert ask("asof", "account", "bob", "--position", story.late).rows == [now]
    first = {**now, "verified": "no", "channels": []}
    assert ask("asof", "account", "1002", "--position", story.registered).rows == [first]


def test_a_time_is_the_last_event_recorded_by_then(ask: Ask, story: Story) -> None:
    deleted_at = story.events[story.deleted - 1].recorded_at
    before = rfc3339(deleted_at - timedelta(microseconds=1))

    assert [row["text"] for row in ask("asof", "messages", "den", "--time", before).rows] == ["Hello"]
    assert ask("asof", "messages", "den", "--time", rfc3339(deleted_at)).rows == []
    assert [row["text"] for row in ask("asof", "messages", "den", "--time", "0s").rows] == ["Too late"]


def test_the_newest_messages_are_shown_or_all_of_them(
    ask_fresh: Ask, fresh: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = 1001
    for number in range(5):
        sent = MessageSent(fresh.den, alice, f"{number}").recorded_form()
        direct = DirectMessageSent(alice, 1002, f"{number}").recorded_form()
        fresh.append(StreamWrite(f"message-{number}", [sent, direct]))
    # One of which both ends are the same.
    to_myself = DirectMessageSent(alice, alice, "to myself").recorded_form()
    head = fresh.append(StreamWrite("message-to-myself", [to_myself]))
    # Pages that end in the middle, and with the last message.
    monkeypatch.setattr("audit.asof._PAGE", 3)

    def texts(*arguments: object) -> list[str]:
        return [row["text"] for row in ask_fresh("asof", *arguments, "--position", head).rows]

    assert texts("messages", "den", "--limit", 2) == ["3", "4"]
    assert texts("messages", "den", "--all") == ["Too late", "0", "1", "2", "3", "4"]
    assert texts("dms", "Alice", "--limit", 2) == ["4", "to myself"]
    assert texts("dms", "Alice", "--all") == ["Psst", "0", "1", "2", "3", "4", "to myself"]
    assert texts("dms", "Bob", "--all") == ["Psst", "0", "1", "2", "3", "4"]


def test_what_was_erased_is_gone_at_every_position(ask_fresh: Ask, fresh: Story) -> None:
    account = [event.position for event in fresh.events if event.stream == "account-1001"]
    fresh.erase(*account, fresh.hello, account_id=1001)

    assert ask_fresh("asof", "messages", "den", "--position", fresh.hello).rows == []
    members = ask_fresh("asof", "members", "den", "--position", fresh.joined).rows
    assert [row["username"] for row in members] == ["(erased account 1001)", "Bob"]
    assert (
        ask_fresh("asof", "account", "1001", "--position", fresh.joined).rows[0]["username"] == "(erased account 1001)"
    )
    [psst] = ask_fresh("asof", "dms", "Bob", "--position", fresh.psst).rows
    assert psst["sender"] == "(erased account 1001)"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("asof channels --position 999", "the log has no position 999 yet: it ends at {head}"),
        ("asof channels --time 1999-12-31", "nothing was recorded by 1999-12-31T00:00:00.000000Z: the log begins at"),
        ("asof messages attic --position 9", "there was no channel attic at position 9"),
        ("asof dms Nobody --position 9", "there was no account Nobody at position 9"),
        ("asof account 4711 --position 9", "there was no account 4711 at position 9"),
        ("diff 1 999", "the log has no position 999 yet"),
        ("history no-such-stream", "there is no stream no-such-stream"),
        ("history account Nobody", "there is no account Nobody"),
        ("history account 4711", "there is no stream account-4711"),
        ("history channel attic", "there is no channel attic"),
        ("history message 1", "there is no message 1: event 1 is of the type UsernameClaimed"),
        ("trace 999", "there is no message 999"),
        ("trace x", "there is no message x"),
        ("trace 0", "there is no message 0"),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_1(ask: Ask, story: Story, arguments: str, told: str) -> None:
    done = ask(*arguments.split())

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"minutebook: {told.format(head=len(story.events))}")
    assert done.err.count("\n") == 1


def test_an_empty_log_has_no_past(ask_fresh: Ask) -> None:
    done = ask_fresh("asof", "channels", "--time", "2026-01-01")

    assert (done.code, done.out) == (1, "")
    assert done.err == "minutebook: nothing was recorded by 2026-01-01T00:00:00.000000Z: the log is empty\n"


@pytest.mark.parametrize(
    "arguments",
    [
        "asof",
        "asof weather --position 1",
        "asof channels",
        "asof channels --position 1 --time 10m",
        "asof channels den --position 1",
        "asof members --position 1",
        "asof channels --position -1",
        "asof channels --time 7",
        "asof messages den --position 1 --limit 0",
        "diff 1",
        "diff one two",
        "history",
        "history stream den",
        "trace",
    ],
)
def test_wrong_questions_are_one_line_and_exit_2(ask: Ask, arguments: str) -> None:
    done = ask(*arguments.split())

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("minutebook: ")
    assert done.err.count("\n") == 1


def test_people_are_shown_the_place_and_a_table(ask: Ask, story: Story) -> None:
    at = clock(story.events[story.joined - 1].recorded_at)

    done = ask("asof", "members", "den", "--position", story.joined, "--no-json")
    lines = done.out.splitlines()
    assert lines[0] == f"as of position {story.joined}, recorded at {at}"
    assert lines[1].split() == ["account", "id", "username", "since", "position"]
    assert [line.split() for line in lines[2:]] == [
        ["1001", "Alice", str(story.den)],
        ["1002", "Bob", str(story.joined)],
    ]
    assert ask("asof", "messages", "den", "--position", story.joined, "--no-json").out.splitlines()[1:] == ["none"]
    account = ask("asof", "account", "Bob", "--position", story.joined, "--no-json").out.splitlines()
    assert [line.split() for line in account[1:4]] == [["account", "id", "1002"], ["username", "Bob"], ["online", "no"]]


# --- diff ------------------------------------------------------------------------------------------------------------


def test_a_diff_names_what_came_went_and_changed(ask: Ask, story: Story) -> None:
    rows = ask("diff", story.silenced, story.late).rows

    assert {(row["change"], row["table"]) for row in rows} == {
        ("-", "messages"),
        ("+", "messages"),
        ("-", "connections"),
        ("~", "restrictions"),
    }
    gone, came = (row for row in rows if row["table"] == "messages")
    assert (gone["key"], gone["before"]["text"], gone["after"]) == ({"message_id": story.hello}, "Hello", None)
    assert gone["names"] == {"channel_id": "#den", "sender_id": "Alice"}
    assert (came["key"], came["before"], came["after"]["text"]) == ({"message_id": story.late}, None, "Too late")
    [restriction] = (row for row in rows if row["table"] == "restrictions")
    assert restriction["key"] == {"account_id": 1002}
    assert restriction["before"]["silenced_until"] > restriction["after"]["silenced_until"]


def test_a_diff_goes_both_ways_and_takes_times(ask: Ask, story: Story) -> None:
    there = ask("diff", story.silenced, story.late).rows
    back = ask("diff", story.late, story.silenced).rows
    silenced_at, late_at = (rfc3339(story.events[at - 1].recorded_at) for at in (story.silenced, story.late))

    turned = {"+": "-", "-": "+", "~": "~"}
    assert [(row["table"], row["key"], turned[row["change"]]) for row in back] == [
        (row["table"], row["key"], row["change"]) for row in there
    ]
    assert ask("diff", silenced_at, late_at).rows == there
    assert ask("diff", story.late, story.late).rows == []


def test_people_read_a_diff_with_names_and_without_digests(ask: Ask, story: Story) -> None:
    at = rfc3339(story.events[story.hello - 1].recorded_at).replace("T", " ")[:-4] + "Z"

    done = ask("diff", story.silenced, story.late, "--no-json")
    lines = done.out.splitlines()
    assert lines[0].startswith(f"from position {story.silenced} (")
    told = f'message_id={story.hello} channel=#den sender=Alice text="Hello" sent_at={at} edited=null'
    assert f"- messages  {told}" in lines
    assert any(re.fullmatch(r"~ restrictions  account=Bob silenced_until: \S+ \S+ → \S+ \S+", line) for line in lines)
    everything = ask("diff", 0, story.late, "--no-json").out + ask("diff", 0, story.late).out
    assert "Alice" in everything
    assert not re.search(r"password_hash|token_digest|\$2b\$", everything)
    back = ask("diff", story.late, 0, "--no-json").out
    assert "account=Alice" in back
    assert "(account 1001)" not in back
    assert ask("diff", 3, 3, "--no-json").out.splitlines()[1:] == ["nothing changed"]


# --- history and trace -----------------------------------------------------------------------------------------------


def test_a_history_is_the_stream_as_tail_shows_it(ask: Ask, story: Story) -> None:
    stream = story.events[story.hello - 1].stream
    history = ask("history", stream)

    assert history == ask("tail", "--stream", stream)
    assert [row["type"] for row in history.rows] == ["MessageSent", "MessageDeleted"]
    assert ask("history", "message", story.hello) == history
    assert [row["position"] for row in ask("history", "channel", "Den").rows] == [story.den]
    assert ask("history", "account", "bob").rows == ask("history", "account-1002").rows
    assert ask("history", "account", "1002").rows == ask("history", "account-1002").rows


def test_a_trace_tells_a_message_s_life(ask: Ask, story: Story) -> None:
    sent, deleted = ask("trace", story.hello).rows

    assert sent["data"].pop("source") not in ("", SOURCE)
    assert sent == {
        "what": "sent",
        "position": story.hello,
        "recorded_at": rfc3339(story.events[story.hello - 1].recorded_at),
        "type": "MessageSent",
        "stream": story.events[story.hello - 1].stream,
        "actor": 1001,
        "actor_name": "Alice",
        "request_id": "request 7",
        "source_address": "(sealed)",
        "details": 'channel=#den sender=Alice text="Hello"',
        "data": {"channel_id": story.den, "sender_id": 1001, "text": "Hello"},
    }
    assert (deleted["what"], deleted["position"]) == ("deleted", story.deleted)
    assert (deleted["request_id"], deleted["source_address"]) == ("request 8", None)


def test_a_trace_opens_addresses_where_the_secret_is_at_hand(ask: Ask, story: Story, tmp_path: Path) -> None:
    def address(*arguments: object) -> str:
        return str(ask("trace", story.hello, *arguments).rows[0]["source_address"])

    (tmp_path / "secret").write_bytes(SECRET + b"\n")

    assert address("--secret", SECRET.decode()) == SOURCE
    assert address("--data-dir", tmp_path) == SOURCE
    assert address("--secret", "another secret of the same kind") == "(sealed)"
    assert address("--data-dir", tmp_path / "nowhere") == "(sealed)"


def test_a_trace_leaves_a_secret_alone_that_it_may_not_read(
    ask: Ask, story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    # The tests may run as root, who may read everything.
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path / "secret")

    assert ask("trace", story.hello, "--data-dir", tmp_path).rows[0]["source_address"] == "(sealed)"


def test_a_trace_of_an_erased_message_tells_who_and_when(ask_fresh: Ask, fresh: Story) -> None:
    erased = fresh.erase(fresh.hello, fresh.deleted, message_id=fresh.hello)

    rows = ask_fresh("trace", fresh.hello).rows

    assert [(row["what"], row["position"], row["actor_name"]) for row in rows] == [
        ("sent", fresh.hello, "Alice"),
        ("deleted", fresh.deleted, "Alice"),
        ("erased", erased, None),
    ]
    assert [(row["details"], row["data"]) for row in rows[:2]] == [("(erased)", None)] * 2
    assert rows[2]["data"]["reason"] == "asked for"


def test_a_trace_tells_of_an_erasure_along_with_the_account(ask_fresh: Ask, fresh: Story) -> None:
    account = [event.position for event in fresh.events if event.stream == "account-1001"]
    # Of somebody else's message this says nothing.
    erased = fresh.erase(*account, fresh.hello, fresh.deleted, account_id=1001)

    assert [(row["what"], row["position"], row["actor_name"]) for row in ask_fresh("trace", fresh.hello).rows] == [
        ("sent", fresh.hello, "(erased account 1001)"),
        ("deleted", fresh.deleted, "(erased account 1001)"),
        ("erased", erased, None),
    ]
    assert [row["what"] for row in ask_fresh("trace", fresh.late).rows] == ["sent"]


def test_a_trace_shows_what_it_has_no_word_for(ask_fresh: Ask, fresh: Story) -> None:
    pinned = NewEvent("MessagePinned", encode({"message_id": fresh.late, "board": "77"}))
    write = StreamWrite(fresh.events[fresh.late - 1].stream, [pinned], expected_version=None)
    fresh.append(write)

    rows = ask_fresh("trace", fresh.late).rows

    assert [row["what"] for row in rows] == ["sent", "message pinned"]
    assert rows[1]["details"] == f'board="77" message_id={fresh.late}'
    shown = ask_fresh("trace", fresh.late, "--no-json").out.splitlines()
    assert shown[0].split() == ["what", "position", "recorded", "at", "actor", "name", "request", "id", "source",
                                "address", "details"]  # fmt: skip


def test_a_trace_follows_a_message_to_discord_and_back(ask_fresh: Ask, fresh: Story) -> None:
    requested = fresh.append(
        StreamWrite(
            "message-to-discord",
            [
                MessageSent(fresh.den, 1001, "Hello").recorded_form(),
                DiscordMessageRequested(1001, "5", None, "Hello", of_message=True).recorded_form(),
            ],
        )
    )
    delivery, message = requested + 1, requested
    for event in (
        DiscordMessageDelivered(delivery, message, 1001, "5", ("77",)),
        MessageEdited(message, "Hello!", 1001),
        DiscordMessageWithdrawn("5", ("77",)),
    ):
        fresh.append(StreamWrite("message-to-discord", [event.recorded_form()], expected_version=None))

    rows = ask_fresh("trace", message).rows

    assert [row["what"] for row in rows] == ["sent", "requested", "delivered", "edited", "withdrawn"]
    assert ask_fresh("trace", delivery).rows == rows


def test_a_trace_is_found_by_a_delivery_that_is_no_message(ask_fresh: Ask, fresh: Story) -> None:
    requested = DiscordMessageRequested(1001, None, "9", "Psst").recorded_form()
    delivery = fresh.append(StreamWrite("message-to-somebody", [requested]))
    failed = DiscordMessageFailed(delivery, None, 1001, "takes no direct messages").recorded_form()
    fresh.append(StreamWrite("message-to-somebody", [failed], expected_version=None))

    rows = ask_fresh("trace", delivery).rows

    assert [(row["what"], row["details"]) for row in rows] == [
        ("requested", 'discord_channel_id=null discord_user_id="9" sender=Alice text="Psst"'),
        ("failed", f'delivery_id={delivery} message_id=null reason="takes no direct messages" sender=Alice'),
    ]


def test_all_that_is_asked_takes_no_right_but_to_read(ask: Ask, story: Story, asking: Callable[[str], Ask]) -> None:
    with role(
        story.database, "SELECT ON ALL TABLES IN SCHEMA public", "CONNECT, TEMPORARY ON DATABASE {database}"
    ) as conninfo:
        reader = asking(conninfo)
        for arguments in (
            *(("asof", what, "--position", story.psst) for what in ("channels", "online")),
            *(("asof", what, name, "--position", story.psst) for what, name in
              (("members", "den"), ("messages", "den"), ("dms", "Bob"), ("account", "Bob"))),
            ("diff", story.den, story.late),
            ("history", "account", "Bob"),
            ("trace", story.hello),
            ("tail", "--since", "10m"),
        ):  # fmt: skip
            answer = ask(*arguments)
            assert reader(*arguments) == answer
            assert answer.rows
        status = reader("status").rows
        assert status[0]["head"] == len(story.events)
