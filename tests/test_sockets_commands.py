"""Commands over Socket.IO: their acknowledgements are what REST answers to the same, body and status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from chat.sources import SourceSeal
from tests.conftest import CI_KEY
from tests.listeners import SECRET, Chat, Listener, message_texts, own_chat, own_server, rows
from tests.servers import Server
from tests.v3client import Person, fresh, own_loop

# Each event, and the endpoint that it stands for.
ENDPOINTS = {
    "send_message": "sendmessage",
    "send_dm": "senddm",
    "delete_message": "deletemessage",
    "read": "readmessagesfromchannel",
    "read_dms": "getdms",
    "read_sent": "getmysentmessages",
    "read_announcements": "getmessagesforeveryone",
    "list_channels": "getchannels",
    "make_channel": "makechannel",
    "add_user": "addusertochannel",
    "post_to_discord": "senddcmsgwithtoken",
    "send_to_discord": "senddcmsg",
    "link_discord": "linkdiscord",
}


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from own_server(cluster, tmp_path_factory.mktemp("server"))


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
    yield from own_chat(io_loop, server)


async def same(person: Person, listener: Listener, event: str, **body: object) -> tuple[Any, int]:
    """What the event is acknowledged with, which must be what the endpoint answers."""
    answered = await person.does(ENDPOINTS[event], None, **body)
    acknowledged, status = await listener.call(event, body)
    assert (acknowledged, status) == (answered.body, answered.status)
    return acknowledged, status


@pytest.mark.gen_test
async def test_messages_are_sent_read_and_deleted_as_by_rest(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    listener = await chat.listens(ann)

    assert (await same(ann, listener, "read_sent"))[1] == 404
    sent = await same(ann, listener, "send_message", channel=channel, message="twice")
    assert sent == ({"message": "Message sent!"}, 200)
    read, status = await same(ann, listener, "read", name=channel, count="10")
    assert (status, [message["message"] for message in read["messages"]]) == (200, ["twice", "twice"])
    first, second = (message["message_id"] for message in read["messages"])
    assert (await same(ann, listener, "read", message_id=first))[1] == 200
    assert len((await same(ann, listener, "read_sent", count=1))[0]["sent_messages"]) == 1
    assert (await same(ann, listener, "read_sent"))[1] == 200

    assert await listener.call("delete_message", {"message_id": first}) == [{"message": "Message deleted!"}, 200]
    assert (await ann.does("deletemessage", message_id=second)).body == {"message": "Message deleted!"}
    assert (await same(ann, listener, "delete_message", message_id=first))[1] == 404
    assert (await same(ann, listener, "read", message_id=first))[1] == 404


@pytest.mark.gen_test
async def test_direct_messages_and_announcements_are_sent_and_read_as_by_rest(chat: Chat) -> None:
    operator, bob = await chat.operator(), await chat.person()
    of_operator, of_bob = await chat.listens(operator), await chat.listens(bob)

    sent = await same(operator, of_operator, "send_dm", username=bob.username, message="hello")
    assert sent[1] == 200
    assert len((await same(bob, of_bob, "read_dms", count=10))[0]["dms"]) == 2
    assert (await same(operator, of_operator, "send_message", channel="announce", message="hear"))[1] == 200
    announced, _ = await same(bob, of_bob, "read_announcements", count=2)
    assert [message["message"] for message in announced["messages"]] == ["hear", "hear"]


@pytest.mark.gen_test
async def test_where_a_command_came_from_is_recorded_with_it_and_sealed(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    listener = await chat.listens(ann)
    [(head,)] = rows(chat.server, "SELECT position FROM log_head")

    await same(ann, listener, "send_message", channel=channel, message="twice")
    await same(ann, listener, "send_dm", username=bob.username, message="twice")
    for message in await ann.reads(channel):
        await listener.call("delete_message", {"message_id": message["message_id"]})
    await chat.bancho("fokabotMessage", k=CI_KEY, to=f"#{channel}", msg="hello")

    found = rows(chat.server, "SELECT type, data ->> 'source', data::text FROM events WHERE position > %s", head)
    assert [kind for kind, _, _ in found] == [
        *("MessageSent", "MessageSent", "DirectMessageSent", "DirectMessageSent"),
        *("MessageDeleted", "MessageDeleted", "MessageSent"),
    ]
    assert {SourceSeal(SECRET.encode()).open(source) for _, source, _ in found} == {"127.0.0.1"}
    assert not any("127.0.0.1" in data for _, _, data in found)


@pytest.mark.gen_test
async def test_channels_are_made_joined_and_listed_as_by_rest(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    listener = await chat.listens(ann)
    by_event, by_rest = fresh("den"), fresh("den")

    acknowledged = await listener.call("make_channel", {"name": by_event})
    answered = await ann.does("makechannel", name=by_rest)
    assert [acknowledged[1], acknowledged[0].keys()] == [answered.status, answered.body.keys()]
    assert (await same(ann, listener, "make_channel", name=by_event))[1] == 409
    assert (await same(ann, listener, "add_user", name=by_event, username=bob.username))[1] == 200
    listed, _ = await same(ann, listener, "list_channels")
    assert [channel["channel_name"] for channel in listed["channels"]] == [by_event, by_rest]
    assert listed["channels"][0].items() <= acknowledged[0].items()
    # The listing takes no body, and then none need be sent.
    assert await listener.call("list_channels") == [listed, 200]


FAULTS: list[tuple[str, dict[str, Any], int, str]] = [
    ("send_message", {"channel": "den"}, 400, "message"),
    ("send_message", {"message": "hello"}, 400, "channel"),
    ("send_message", {"channel": "den", "message": 1}, 400, "message"),
    ("send_message", {"channel": "den", "message": ""}, 400, "message"),
    ("send_message", {"channel": "den", "message": "x" * 4001}, 400, "message"),
    ("send_message", {"channel": "den", "message": "a\0b"}, 400, "message"),
    ("send_message", {"channel": "nowhere at all", "message": "hello"}, 404, "Channel not found!"),
    ("send_message", {"channel": "announce", "message": "hello"}, 401, ""),
    ("send_dm", {"username": "Nobody of that name", "message": "hello"}, 404, "User not found!"),
    ("send_dm", {"username": ["Ann"], "message": "hello"}, 400, "username"),
    ("read", {"name": "den"}, 400, "count"),
    ("read", {"count": 1}, 400, "name"),
    ("read", {"message_id": "one"}, 400, "message_id"),
    ("read", {"message_id": 999_999_999}, 404, "Message not found!"),
    ("read", {"name": "nowhere at all", "count": 1}, 404, "Channel not found!"),
    ("read_dms", {}, 400, "count"),
    ("read_dms", {"count": 0}, 400, "count"),
    ("read_announcements", {"count": 1.5}, 400, "count"),
    ("delete_message", {}, 400, "message_id"),
    ("make_channel", {"name": ""}, 400, "name"),
    ("make_channel", {}, 400, "name"),
    ("add_user", {"name": "nowhere at all", "username": "Ann"}, 404, "Channel not found!"),
]


@pytest.mark.parametrize(("event", "body", "status", "word"), FAULTS, ids=[f"{each[0]}-{each[2:]}" for each in FAULTS])
@pytest.mark.gen_test
async def test_faults_are_answered_as_by_rest(
    chat: Chat, event: str, body: dict[str, Any], status: int, word: str
) -> None:
    ann = await chat.person()
    listener = await chat.listens(ann)

    acknowledged, answered = await same(ann, listener, event, **body)

    assert (answered, acknowledged.keys()) == (status, {"message"})
    assert word in acknowledged["message"]


@pytest.mark.parametrize("body", ["text", 1, [], [{"channel": "den"}], True])
@pytest.mark.gen_test
async def test_a_body_that_is_no_object_is_told_so(chat: Chat, body: object) -> None:
    listener = await chat.listens(await chat.person())

    acknowledged, status = await listener.call("send_message", body)

    assert (acknowledged, status) == ({"message": "body: must be a JSON object"}, 400)


@pytest.mark.gen_test
async def test_half_a_character_is_refused_and_the_connection_goes_on(chat: Chat) -> None:
    ann = await chat.person()
    channel = await ann.makes()
    listener = await chat.listens(ann)

    acknowledged, status = await listener.call("send_message", {"channel": channel, "message": "\ud800"})
    assert (status, acknowledged.keys()) == (400, {"message"})
    assert "surrogate" in acknowledged["message"]
    assert (await listener.call("send_message", {"channel": channel, "message": "whole"}))[1] == 200


@pytest.mark.parametrize("event", list(ENDPOINTS))
@pytest.mark.gen_test
async def test_who_is_not_registered_may_do_nothing(chat: Chat, event: str) -> None:
    ann = await chat.person()
    listener = await chat.connected()

    # A token in the body is no way in: connections are registered.
    for body in ({}, {"token": ann.token, "count": 1}):
        assert await listener.call(event, body) == [{"message": "Invalid token!"}, 401]


@pytest.mark.gen_test
async def test_who_sends_is_who_is_registered_whatever_token_is_in_the_body(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    listener = await chat.listens(ann)

    body, status = await listener.call("send_message", {"channel": channel, "message": "mine", "token": bob.token})

    assert (status, body) == (200, {"message": "Message sent!"})
    assert [message["sender"] for message in await bob.reads(channel)] == [ann.username]


@pytest.mark.gen_test
async def test_an_idempotency_key_makes_a_message_stand_once(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    first, second, watcher = [await chat.listens(person) for person in (ann, ann, bob)]
    body = {"channel": channel, "message": "once", "idempotency_key": "key-1"}

    answers = [await first.call("send_message", body), await second.call("send_message", body)]
    by_rest = await ann.does("sendmessage", {"Idempotency-Key": "key-1"}, channel=channel, message="once")
    other = await second.call("send_message", {**body, "message": "of another key", "idempotency_key": "key-2"})

    assert answers == [[{"message": "Message sent!"}, 200]] * 2 == [[by_rest.body, by_rest.status]] * 2
    assert other[1] == 200
    assert message_texts(await watcher.events(2)) == ["once", "of another key"]


@pytest.mark.parametrize("key", [1, ["key"], "", "x" * 1000, "two words\n", "ä"])
@pytest.mark.gen_test
async def test_an_idempotency_key_that_is_none_is_named(chat: Chat, key: object) -> None:
    ann = await chat.person()
    channel = await ann.makes()
    listener = await chat.listens(ann)

    acknowledged, status = await listener.call(
        "send_message", {"channel": channel, "message": "never", "idempotency_key": key}
    )

    assert status == 400
    assert acknowledged["message"].startswith("idempotency_key: ")
    assert await ann.reads(channel) == []


@pytest.mark.gen_test
async def test_events_that_want_no_acknowledgement_are_done_in_their_order(chat: Chat) -> None:
    ann = await chat.person()
    channel = await ann.makes()
    listener = await chat.listens(ann)

    for number in range(50):
        await listener.emit("send_message", {"channel": channel, "message": str(number)})

    assert message_texts(await listener.events(50)) == [str(number) for number in range(50)]


@pytest.mark.parametrize("event", ["new_message", "ready", "unheard-of", "error", "server_restart"])
@pytest.mark.gen_test
async def test_an_event_that_nobody_handles_is_passed_over(chat: Chat, event: str) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    forger, listener = await chat.listens(ann), await chat.listens(bob)

    await forger.emit(event, {"sender": "FokaBot", "message": "forged", "channel": channel})

    assert (await forger.call("send_message", {"channel": channel, "message": "true"}))[1] == 200
    assert message_texts([await listener.event()]) == ["true"]
