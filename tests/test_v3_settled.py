"""Button API V3 over HTTP, where its document is silent: what the contract settles in its place."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from eventstore.merkle import rfc3339
from handlers.v3 import ENDPOINTS
from tests.conftest import OPERATOR
from tests.v3client import (
    PASSWORD,
    World,
    credentials,
    fresh,
    keys,
    own_loop,
    own_world,
    registered,
    texts,
    two_in_a_channel,
)
from tests.v3words import (
    ALL,
    BAD_USERNAME,
    BEYOND_IT,
    BY_PASSWORD,
    CHANNEL_EXISTS,
    CHANNEL_NOT_FOUND,
    DELETED,
    DM_SENT,
    INVALID_TOKEN,
    MESSAGE_NOT_FOUND,
    NO_SUCH_TOKEN,
    NOT_ALLOWED,
    NOT_IN_CHANNEL,
    REGISTERED,
    SENT,
    USER_EXISTS,
    USER_NOT_FOUND,
    UUID,
    WEAK_PASSWORD,
    WRONG_CREDENTIALS,
    Fields,
)

pytestmark = pytest.mark.gen_test

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def world(io_loop: IOLoop, cluster: str) -> Iterator[World]:
    yield from own_world(io_loop, cluster)


# --- Requests --------------------------------------------------------------------------------------------------------


async def test_the_endpoints_are_those_of_the_document_and_linkdiscord(world: World) -> None:
    assert list(ENDPOINTS) == [*ALL, *BEYOND_IT]


@pytest.mark.parametrize("endpoint", ALL)
async def test_a_path_works_with_and_without_the_trailing_slash(world: World, endpoint: str) -> None:
    # An empty object tells which path was understood: the answer names the endpoint's first field.
    first = ENDPOINTS[endpoint][0].__struct_fields__[0]

    answers = [await world.v3.ask(f"/api/v3/{endpoint}{slash}", b"{}") for slash in ("", "/")]

    assert [answer.said for answer in answers] == [(400, {"message": f"{first}: is missing"})] * 2


async def test_numbers_may_be_strings_of_digits(world: World) -> None:
    ann = await world.person()
    channel = await ann.makes()
    message_id = await ann.sends(channel, "hello")
    by_number = await ann.does("readmessagesfromchannel", message_id=message_id)

    by_digits = await ann.does("readmessagesfromchannel", message_id=f"00{message_id}")
    counted = [await ann.reads(channel, count) for count in (1, "1", "007", "1" + "0" * 50)]
    deleted = await ann.does("deletemessage", message_id=str(message_id))

    assert by_digits.said == by_number.said
    assert counted == [by_number.body["messages"]] * 4
    assert deleted.said == DELETED


@pytest.mark.parametrize("count", [0, -1, "0", "-1", "1.0", "", " 1", "one", "\u0663", 1.0, True, None, [1]])
@pytest.mark.parametrize("endpoint", ["getdms", "getmessagesforeveryone", "getmysentmessages"])
async def test_a_count_is_a_whole_number_from_1(world: World, endpoint: str, count: object) -> None:
    answer = await (await world.person()).does(endpoint, count=count)

    assert (answer.status, keys(answer.body)) == (400, ["message"])
    assert answer.body["message"].startswith("count: ")


async def test_a_count_above_1000_is_cut_to_the_newest_1000(world: World) -> None:
    operator, ann = await world.operator(), await world.person()
    channel = await ann.makes()
    account = await world.commands.authenticate(ann.token)
    speaker = await world.commands.authenticate(operator.token)
    for text in map(str, range(1001)):
        await asyncio.gather(
            world.commands.send_message(account, channel, text, "test"),
            world.commands.send_direct_message(account, ann.username, text, "test"),
            world.commands.send_message(speaker, "announce", text, "test"),
        )
    newest = [str(number) for number in range(1, 1001)]

    for count in (1001, "1001", 10**30, "9" * 100):
        in_channel = await ann.reads(channel, count)
        sent = await ann.does("getmysentmessages", count=count)
        direct = await ann.dms(count)
        announced = await ann.does("getmessagesforeveryone", count=count)
        assert texts(in_channel) == newest
        assert texts(sent.body["sent_messages"]) == newest
        assert texts(direct) == newest
        assert texts(announced.body["messages"]) == newest
    # Without a count, which the document does not give it, it shows as many.
    assert texts((await ann.does("getmysentmessages")).body["sent_messages"]) == newest


async def test_lists_are_oldest_first_and_count_takes_the_newest(world: World) -> None:
    operator, ann, bob = await world.operator(), await world.person(), await world.person()
    channel = await ann.makes()
    for text in ("one", "two", "three"):
        await ann.sends(channel, text)
        await ann.writes_to(bob, text)
        await operator.sends("announce", text)

    assert texts(await ann.reads(channel, 3)) == ["one", "two", "three"]
    assert texts(await ann.reads(channel, 2)) == ["two", "three"]
    assert texts((await ann.does("getmysentmessages")).body["sent_messages"]) == ["one", "two", "three"]
    assert texts((await ann.does("getmysentmessages", count="2")).body["sent_messages"]) == ["two", "three"]
    assert texts(await bob.dms(3)) == ["one", "two", "three"]
    assert texts(await bob.dms(2)) == ["two", "three"]
    assert texts((await ann.does("getmessagesforeveryone", count=2)).body["messages"]) == ["two", "three"]


async def test_a_message_id_wins_over_a_channels_name(world: World) -> None:
    ann = await world.person()
    channel = await ann.makes()
    message_id = await ann.sends(channel, "first")
    await ann.sends(channel, "second")

    answer = await ann.does("readmessagesfromchannel", message_id=message_id, name=fresh("nowhere"), count=1)

    assert texts(answer.body["messages"]) == ["first"]


async def test_keys_that_an_endpoint_does_not_know_are_ignored(world: World) -> None:
    ann = await world.person()

    answer = await ann.does("makechannel", name=(name := fresh("den")), topic={"of": ["no", "interest", None, 1.5]})

    assert (answer.status, answer.body["channel_name"]) == (200, name)


# --- Order of checks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "fields", "field"),
    [
        ("getmessagesforeveryone", {"count": "many"}, "count"),
        ("readmessagesfromchannel", {"message_id": "x"}, "message_id"),
        ("readmessagesfromchannel", {"name": "nowhere"}, "count"),
        ("deletemessage", {}, "message_id"),
        ("makechannel", {"name": ""}, "name"),
        ("addusertochannel", {"name": "nowhere"}, "username"),
        ("sendmessage", {"channel": "nowhere", "message": ""}, "message"),
        ("senddm", {"username": "Nobody", "message": 5}, "message"),
        ("senddcmsgwithtoken", {"message": ""}, "message"),
        ("senddcmsg", {"channel": "nowhere", "message": ""}, "message"),
        ("senddcmsgwithtoken", {"message": " \n\u3000"}, "message"),
        ("senddcmsg", {"channel": "nowhere", "message": "\t"}, "message"),
    ],
)
async def test_the_bodys_shape_is_checked_before_the_token(
    world: World, endpoint: str, fields: Fields, field: str
) -> None:
    answer = await world.v3.call(endpoint, token=NO_SUCH_TOKEN, **fields)

    assert answer.status == 400
    assert answer.body["message"].startswith(f"{field}: ")


@pytest.mark.parametrize("endpoint", BY_PASSWORD)
async def test_shape_then_password_then_username_then_credentials(world: World, endpoint: str) -> None:
    call = world.v3.call
    taken = (await registered(world))["username"]
    wrong = USER_EXISTS if endpoint == "register" else WRONG_CREDENTIALS

    shape = await call(endpoint, username=5, password="weak")
    password = await call(endpoint, username="ab", password="weak")
    username = await call(endpoint, username="ab", password=PASSWORD)
    last = await call(endpoint, username=taken, password="0therPassw0rd!")

    assert shape.said == (400, {"message": "username: must be a string"})
    assert [answer.said for answer in (password, username, last)] == [WEAK_PASSWORD, BAD_USERNAME, wrong]


async def test_the_thing_addressed_is_checked_before_the_right_to_it(world: World) -> None:
    ann, stranger = await world.person(), await world.person()
    channel = await ann.makes()
    message_id = await ann.sends(channel, "gone")
    await ann.does("deletemessage", message_id=message_id)

    unknown_user = await stranger.does("addusertochannel", name=channel, username=fresh("Nobody"))
    unknown_channel = await stranger.does("addusertochannel", name=fresh("nowhere"), username=fresh("Nobody"))
    reading = await stranger.does("readmessagesfromchannel", message_id=message_id)
    deleting = await stranger.does("deletemessage", message_id=message_id)

    assert unknown_user.said == USER_NOT_FOUND
    assert unknown_channel.said == CHANNEL_NOT_FOUND
    assert [reading.said, deleting.said] == [MESSAGE_NOT_FOUND] * 2


# --- Names and passwords ---------------------------------------------------------------------------------------------


async def test_usernames_are_unique_by_their_safe_name(world: World) -> None:
    number = fresh("")
    await registered(world, f"Mr Cat {number}")

    answers = [
        await world.v3.call("register", **credentials(name))
        for name in (f"mr cat {number}", f"Mr_Cat_{number}", f" MR CAT {number} ")
    ]

    assert [answer.said for answer in answers] == [USER_EXISTS] * 3


async def test_people_are_found_by_the_safe_name_and_shown_as_they_registered(world: World) -> None:
    number = fresh("")
    cat = await world.v3.person(f"Mr Cat {number}")
    other_way = f" mr_CAT_{number} "
    ann = await world.person()
    channel = await ann.makes()

    logged_in = await world.v3.call("login", **credentials(other_way))
    added = await ann.does("addusertochannel", name=channel, username=other_way)
    sent = await ann.does("senddm", username=other_way, message="psst")
    await cat.sends(channel, "meow")

    assert (logged_in.status, sent.said) == (200, DM_SENT)
    assert added.body["username"] == cat.username
    assert [dm["recipient"] for dm in await cat.dms()] == [cat.username]
    assert [message["sender"] for message in await ann.reads(channel)] == [cat.username]


async def test_channels_are_unique_by_their_safe_name_and_the_hash_is_no_part_of_it(world: World) -> None:
    ann = await world.person()
    number = fresh("")
    made = await ann.does("makechannel", name=f"#The Den {number}")
    spellings = [f"{hash_sign}{name}" for hash_sign in ("", "#") for name in (f"the den {number}", f"THE_DEN_{number}")]

    again = [await ann.does("makechannel", name=name) for name in spellings]
    sent = [await ann.does("sendmessage", channel=name, message=name) for name in spellings]
    read = [await ann.reads(name) for name in spellings]
    added = [await ann.does("addusertochannel", name=name, username=ann.username) for name in spellings]

    name = f"The Den {number}"
    assert made.body["channel_name"] == name
    assert [answer.said for answer in again] == [CHANNEL_EXISTS] * 4
    assert [answer.said for answer in sent] == [SENT] * 4
    assert [texts(messages) for messages in read] == [spellings] * 4
    assert {message["channel"] for messages in read for message in messages} == {name}
    assert {answer.body["channel_name"] for answer in added} == {name}


@pytest.mark.parametrize("name", ["", "#", "   ", "n" * 65, "#" + "n" * 65, "two\nlines", "tab\t", "del\x7f", "\u2028"])
async def test_a_channels_name_is_1_to_64_characters_without_control_characters(world: World, name: str) -> None:
    ann = await world.person()

    answer = await ann.does("makechannel", name=name)

    assert answer.status == 400
    assert answer.body["message"].startswith("name: ")
    assert (await ann.does("getchannels")).status == 404


async def test_a_channels_name_may_have_1_and_64_characters_of_any_width(world: World) -> None:
    ann = await world.person()
    longest = fresh("\U0001f600" * 40).ljust(64, "é")
    names = ["ñ", longest, "#" + fresh("n").ljust(64, "n")]

    made = [await ann.does("makechannel", name=name) for name in names]

    assert [answer.status for answer in made] == [200] * 3
    assert [answer.body["channel_name"] for answer in made] == [name.removeprefix("#") for name in names]


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("Passw0!", id="7 characters"),
        pytest.param("Passw0rd!" + "x" * 12, id="21 characters"),
        pytest.param("Password!", id="no number"),
        pytest.param("passw0rd!", id="no capital letter"),
        pytest.param("Passw0rd", id="no special symbol"),
        pytest.param("Passw0rdé", id="a letter is no special symbol"),
        pytest.param("Passw0rd !", id="a space"),
        pytest.param(" Passw0rd!", id="a space at the beginning"),
        pytest.param("Passw0rd!\n", id="a line break"),
        pytest.param("Passw0rd!\u00a0", id="a space that does not break"),
        pytest.param("Passw0rd!\u3000", id="an ideographic space"),
        pytest.param("", id="empty"),
    ],
)
async def test_each_requirement_of_a_password_is_kept(world: World, password: str) -> None:
    answer = await world.v3.call("register", **credentials(password=password))

    assert answer.said == WEAK_PASSWORD


@pytest.mark.parametrize(
    "password", ["Passw0r_", "Passw0rd!" + "x" * 11, "Ünï©0dée", "Passw0r\U0001f600", "Abcdefg\u0663+"]
)
async def test_a_password_that_meets_the_requirements_logs_in_and_no_other_does(world: World, password: str) -> None:
    somebody = credentials(password=password)
    made = await world.v3.call("register", **somebody)

    good = await world.v3.call("login", **somebody)
    bad = await world.v3.call("login", **{**somebody, "password": "X" + password[1:]})

    assert made.said == REGISTERED
    assert good.status == 200
    assert bad.said == WRONG_CREDENTIALS


@pytest.mark.parametrize("username", ["", "ab", "n" * 21, "   ", " a "])
async def test_a_username_is_3_to_20_characters(world: World, username: str) -> None:
    assert (await world.v3.call("register", **credentials(username))).said == BAD_USERNAME


async def test_a_username_may_have_3_and_20_characters_of_any_width(world: World) -> None:
    for username in ("ñ\U0001f600z", fresh("\U0001f600").ljust(20, "é")):
        somebody = await world.v3.person(username)
        channel = await somebody.makes()
        await somebody.sends(channel, "hello")
        assert [message["sender"] for message in await somebody.reads(channel)] == [username]


async def test_a_username_holds_no_control_characters(world: World) -> None:
    answer = await world.v3.call("register", **credentials("two\nlines"))

    assert answer.said == (400, {"message": "username: must not hold control characters"})


async def test_of_two_who_register_one_name_at_once_one_gets_it(world: World) -> None:
    name = fresh("Name")

    answers = await asyncio.gather(*(world.v3.call("register", **credentials(name)) for _ in range(8)))

    assert sorted(answer.status for answer in answers) == [201] + [401] * 7
    assert [answer.said for answer in answers if answer.status == 401] == [USER_EXISTS] * 7


# --- Accounts --------------------------------------------------------------------------------------------------------


async def test_the_bot_is_account_999_and_people_count_from_1000_in_the_order_of_registration(world: World) -> None:
    first, second = await world.person(), await world.person()
    await world.v3.call("register", **credentials(first.username))  # refused: uses up no number
    third = await world.person()

    accounts = [event.body() for event in await whole_log(world) if event.type == "AccountRegistered"]

    assert (accounts[0]["account_id"], accounts[0]["username"]) == (999, "FokaBot")
    assert [account["account_id"] for account in accounts[1:]] == list(range(1000, 1000 + len(accounts) - 1))
    assert [account["username"] for account in accounts[-3:]] == [first.username, second.username, third.username]


async def whole_log(world: World) -> list[Any]:
    return await world.log.read(limit=1_000_000)


async def test_nobody_can_be_the_bot_but_everyone_can_write_to_it(world: World) -> None:
    ann = await world.person()

    registering = await world.v3.call("register", **credentials("fokabot"))
    logging_in = await world.v3.call("login", **credentials("FokaBot"))
    writing = await ann.does("senddm", username="fokabot", message="hello")

    assert registering.said == USER_EXISTS
    assert logging_in.said == WRONG_CREDENTIALS
    assert writing.said == DM_SENT
    assert [dm["recipient"] for dm in await ann.dms()] == ["FokaBot"]


async def test_no_password_and_no_token_ever_enters_the_log(world: World) -> None:
    somebody = credentials(password="S3cret-of-mine!")
    await world.v3.call("register", **somebody)
    token = (await world.v3.call("generatetoken", **somebody)).body["token"]

    log = b"\n".join((event.data or b"") + event.metadata for event in await whole_log(world))

    assert str(somebody["username"]).encode() in log
    assert b"S3cret-of-mine!" not in log
    assert token.encode() not in log


# --- Tokens ----------------------------------------------------------------------------------------------------------


async def test_a_token_change_ends_the_old_token_at_once(world: World) -> None:
    ann = await world.person()
    await ann.makes()
    assert (await ann.does("getchannels")).status == 200  # known to every cache by now

    changed = await world.v3.call("generatetoken", **credentials(ann.username))
    old = await ann.does("getchannels")
    new = await world.v3.call("getchannels", token=changed.body["token"])

    assert old.said == INVALID_TOKEN
    assert new.status == 200


async def test_of_tokens_changed_at_once_only_the_newest_is_good(world: World) -> None:
    ann = await world.person()

    made = await asyncio.gather(*(world.v3.call("generatetoken", **credentials(ann.username)) for _ in range(5)))
    tokens = [answer.body["token"] for answer in made]
    answers = [await world.v3.call("getmessagesforeveryone", token=token, count=1) for token in tokens]
    kept = await world.v3.call("gettoken", **credentials(ann.username))

    assert len({*tokens, ann.token}) == 6
    assert [token for token, answer in zip(tokens, answers, strict=True) if answer.status == 200] == [
        kept.body["token"]
    ]


# --- Messages --------------------------------------------------------------------------------------------------------


async def test_a_message_is_shown_with_exactly_these_keys_everywhere(world: World) -> None:
    operator, ann = await world.operator(), await world.person()
    channel = await ann.makes()
    message_id = await ann.sends(channel, "hello")
    await operator.sends("announce", "hello all")

    shown = [
        *await ann.reads(channel),
        *(await ann.does("getmysentmessages")).body["sent_messages"],
        *(await ann.does("readmessagesfromchannel", message_id=message_id)).body["messages"],
    ]
    announced = (await ann.does("getmessagesforeveryone", count=1)).body["messages"]

    [first, *_] = shown
    expected = {"message_id": message_id, "sender": ann.username, "message": "hello", "channel": channel}
    assert shown == [{**expected, "timestamp": first["timestamp"]}] * 3
    assert keys(announced[0]) == ["channel", "message", "message_id", "sender", "timestamp"]
    assert (announced[0]["channel"], announced[0]["sender"]) == ("announce", OPERATOR)


async def test_a_dm_is_shown_with_the_recipient_in_place_of_the_channel_everywhere(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    message_id = await ann.writes_to(bob, "psst")

    shown = [
        *await ann.dms(),
        *await bob.dms(),
        *(await ann.does("readmessagesfromchannel", message_id=message_id)).body["messages"],
        *(await bob.does("readmessagesfromchannel", message_id=message_id)).body["messages"],
    ]

    [first, *_] = shown
    expected = {"message_id": message_id, "sender": ann.username, "message": "psst", "recipient": bob.username}
    assert shown == [{**expected, "timestamp": first["timestamp"]}] * 4


async def test_message_ids_are_one_rising_number_space_for_messages_and_dms(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    channel = await ann.makes()

    ids = [await ann.sends(channel, "a"), await ann.writes_to(bob, "b"), await ann.sends(channel, "c")]

    assert all(type(message_id) is int for message_id in ids)
    assert ids == sorted(set(ids))
    [direct] = (await ann.does("readmessagesfromchannel", message_id=ids[1])).body["messages"]
    assert direct["message"] == "b"


async def test_timestamps_are_rfc_3339_in_utc_with_microseconds(world: World) -> None:
    ann = await world.person()
    channel = await ann.makes()
    await ann.sends(channel, "now")
    await ann.writes_to(ann, "now")

    stamps = [(await ann.newest(channel))["timestamp"], (await ann.dms())[0]["timestamp"]]

    assert all(TIMESTAMP.fullmatch(stamp) for stamp in stamps), stamps
    assert all(abs(datetime.fromisoformat(stamp) - datetime.now(UTC)) < timedelta(minutes=1) for stamp in stamps)


async def test_a_timestamp_of_a_whole_second_has_its_microseconds_too() -> None:
    assert rfc3339(datetime(2026, 1, 31, 12, tzinfo=UTC)) == "2026-01-31T12:00:00.000000Z"


@pytest.mark.parametrize("text", ["x", "x" * 4000, "\U0001f600" * 4000, " ", "\n", '"\\\x01\x7f\u2028\ufeff\uffff'])
async def test_a_text_of_1_to_4000_characters_is_kept_as_it_is(world: World, text: str) -> None:
    ann = await world.person()
    channel = await ann.makes()

    await ann.sends(channel, text)
    await ann.writes_to(ann, text)

    assert texts(await ann.reads(channel)) == [text]
    assert texts(await ann.dms()) == [text]


@pytest.mark.parametrize("text", ["", "x" * 4001, "\U0001f600" * 4001])
async def test_a_text_of_any_other_length_is_400(world: World, text: str) -> None:
    ann = await world.person()
    channel = await ann.makes()
    # As UTF-8, since four thousand escaped pairs are near the limit of a body.
    bodies = [
        ("sendmessage", {"token": ann.token, "channel": channel, "message": text}),
        ("senddm", {"token": ann.token, "username": ann.username, "message": text}),
    ]

    answers = [
        await world.v3.ask(f"/api/v3/{endpoint}", json.dumps(body, ensure_ascii=False).encode())
        for endpoint, body in bodies
    ]

    assert [answer.said for answer in answers] == [
        (400, {"message": "message: must be 1 to 4,000 characters long"})
    ] * 2
    assert await ann.reads(channel) == []


async def test_a_deleted_message_is_gone_from_every_read_and_then_404(world: World) -> None:
    operator, ann, bob = await world.operator(), await world.person(), await world.person()
    channel = await ann.makes()
    await ann.brings(bob, channel)
    kept, gone = await ann.sends(channel, "kept"), await ann.sends(channel, "gone")
    announced = await operator.sends("announce", fresh("gone"))

    for author, message_id in ((ann, gone), (operator, announced)):
        assert (await author.does("deletemessage", message_id=message_id)).said == DELETED

    assert [message["message_id"] for message in await bob.reads(channel)] == [kept]
    sent = (await ann.does("getmysentmessages")).body["sent_messages"]
    assert [message["message_id"] for message in sent] == [kept]
    everyone = (await bob.does("getmessagesforeveryone", count=1000)).body["messages"]
    assert announced not in [message["message_id"] for message in everyone]
    for person in (ann, bob, operator):
        for message_id in (gone, announced):
            for endpoint in ("readmessagesfromchannel", "deletemessage"):
                assert (await person.does(endpoint, message_id=message_id)).said == MESSAGE_NOT_FOUND


async def test_a_deleted_dm_is_gone_at_both_ends_and_then_404(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    message_id = await ann.writes_to(bob, "gone")

    by_recipient = await bob.does("deletemessage", message_id=message_id)
    by_sender = await ann.does("deletemessage", message_id=message_id)

    assert by_recipient.said == (403, {"message": "You can only delete your messages!"})
    assert by_sender.said == DELETED
    for person in (ann, bob):
        assert (await person.does("getdms", count=10)).said == (404, {"message": "No dms!"})
        for endpoint in ("readmessagesfromchannel", "deletemessage"):
            assert (await person.does(endpoint, message_id=message_id)).said == MESSAGE_NOT_FOUND


async def test_of_two_deletions_at_once_one_deletes(world: World) -> None:
    ann = await world.person()
    message_id = await ann.sends(await ann.makes(), "gone")
    before = await world.log.head()

    answers = await asyncio.gather(*(ann.does("deletemessage", message_id=message_id) for _ in range(5)))

    assert sorted(answer.status for answer in answers) == [200] + [404] * 4
    assert [event.type for event in await world.events_after(before)] == ["MessageDeleted"]


async def test_an_event_that_is_no_message_cannot_be_read_or_deleted_as_one(world: World) -> None:
    ann = await world.person()
    channel_id = (await ann.does("makechannel", name=fresh("den"))).body["channel_id"]

    answers = [
        await ann.does(endpoint, message_id=channel_id) for endpoint in ("readmessagesfromchannel", "deletemessage")
    ]

    assert [answer.said for answer in answers] == [MESSAGE_NOT_FOUND] * 2


async def test_one_message_is_read_by_members_and_by_both_ends_of_a_dm_only(world: World) -> None:
    ann, bob, channel = await two_in_a_channel(world)
    stranger = await world.person()
    for message_id in (await ann.sends(channel, "hello"), await ann.writes_to(bob, "psst")):
        for person in (ann, bob):
            read = await person.does("readmessagesfromchannel", message_id=message_id)
            assert [message["message_id"] for message in read.body["messages"]] == [message_id]
        assert (await stranger.does("readmessagesfromchannel", message_id=message_id)).said == NOT_ALLOWED


async def test_getmysentmessages_shows_all_channels_and_no_dms(world: World) -> None:
    ann = await world.person()
    for channel in (await ann.makes(), await ann.makes()):
        await ann.sends(channel, channel)
    await ann.writes_to(ann, "psst")

    sent = (await ann.does("getmysentmessages")).body["sent_messages"]

    assert [message["message"] for message in sent] == [message["channel"] for message in sent]
    assert len(sent) == 2


# --- Direct messages -------------------------------------------------------------------------------------------------


async def test_getdms_gives_those_received_and_those_sent_in_one_order(world: World) -> None:
    ann, bob, eve = await world.person(), await world.person(), await world.person()
    await ann.writes_to(bob, "from ann to bob")
    await eve.writes_to(ann, "from eve to ann")
    await eve.writes_to(bob, "from eve to bob")
    await bob.writes_to(ann, "from bob to ann")

    assert texts(await ann.dms()) == ["from ann to bob", "from eve to ann", "from bob to ann"]
    assert texts(await ann.dms(2)) == ["from eve to ann", "from bob to ann"]
    assert texts(await bob.dms()) == ["from ann to bob", "from eve to bob", "from bob to ann"]


async def test_a_dm_to_oneself_is_shown_once(world: World) -> None:
    ann = await world.person()
    await ann.writes_to(ann, "note to self")
    await ann.writes_to(ann, "another")

    assert texts(await ann.dms(1)) == ["another"]
    dms = await ann.dms()
    assert texts(dms) == ["note to self", "another"]
    assert {(dm["sender"], dm["recipient"]) for dm in dms} == {(ann.username, ann.username)}


# --- Channels --------------------------------------------------------------------------------------------------------


async def test_addusertochannel_of_an_unknown_user_is_404_user_not_found(world: World) -> None:
    ann = await world.person()

    answer = await ann.does("addusertochannel", name=await ann.makes(), username=fresh("Nobody"))

    assert answer.said == USER_NOT_FOUND


async def test_addusertochannel_of_a_member_is_the_same_200_again_and_no_second_event(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    channel = await ann.makes()
    fields: Fields = {"name": channel, "username": bob.username}
    before = await world.log.head()

    at_once = await asyncio.gather(*(ann.does("addusertochannel", **fields) for _ in range(5)))
    later = [await person.does("addusertochannel", **fields) for person in (ann, bob)]

    expected = (200, {"message": "User added to channel!", "channel_name": channel, "username": bob.username})
    assert [answer.said for answer in (*at_once, *later)] == [expected] * 7
    assert [event.type for event in await world.events_after(before)] == ["MemberAdded"]


async def test_a_channels_maker_is_its_first_member(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    channel = await ann.makes()

    again = await ann.does("addusertochannel", name=channel, username=ann.username)
    await ann.brings(bob, channel)

    assert again.status == 200
    # Whoever is in may bring in others.
    await bob.brings(await world.person(), channel)


async def test_makechannel_of_a_name_that_exists_is_409_channel_exists(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    channel = await ann.makes()
    before = await world.log.head()

    answers = [await person.does("makechannel", name=channel) for person in (ann, bob)]

    assert [answer.said for answer in answers] == [(409, {"message": "Channel exists!"})] * 2
    assert await world.log.head() == before


async def test_of_two_who_make_one_channel_at_once_one_makes_it(world: World) -> None:
    people = [await world.person() for _ in range(5)]
    name = fresh("den")

    answers = await asyncio.gather(*(person.does("makechannel", name=name) for person in people))

    assert sorted(answer.status for answer in answers) == [200] + [409] * 4
    channels = [(await person.does("getchannels")).status for person in people]
    assert channels == [200 if answer.status == 200 else 404 for answer in answers]


# --- Announcements ---------------------------------------------------------------------------------------------------


async def test_announce_is_read_by_everyone_in_every_way(world: World) -> None:
    operator, stranger = await world.operator(), await world.person()
    message_id = await operator.sends("#announce", text := fresh("news"))

    by_id = await stranger.does("readmessagesfromchannel", message_id=message_id)
    by_name = await stranger.does("readmessagesfromchannel", name="announce", count=1)
    for_everyone = await stranger.does("getmessagesforeveryone", count=1)

    assert texts(by_id.body["messages"]) == [text]
    assert by_name.said == by_id.said
    assert for_everyone.body["messages"] == by_id.body["messages"]


async def test_announce_is_written_by_operators_only(world: World) -> None:
    await (await world.operator()).sends("announce", fresh("news"))
    ann = await world.person()
    before = await world.log.head()

    sent = await ann.does("sendmessage", channel="announce", message="spam")
    joined = await ann.does("addusertochannel", name="announce", username=ann.username)
    made = await ann.does("makechannel", name="#Announce")

    assert [sent.said, joined.said, made.said] == [NOT_IN_CHANNEL, NOT_IN_CHANNEL, CHANNEL_EXISTS]
    assert await world.log.head() == before


async def test_an_operator_has_no_more_rights_in_other_channels_than_anybody(world: World) -> None:
    ann, operator = await world.person(), await world.operator()
    channel = await ann.makes()
    message_id = await ann.sends(channel, "private")

    sent = await operator.does("sendmessage", channel=channel, message="hello")
    read = await operator.does("readmessagesfromchannel", message_id=message_id)
    deleted = await operator.does("deletemessage", message_id=message_id)

    assert [sent.said, read.said] == [NOT_IN_CHANNEL, NOT_ALLOWED]
    assert deleted.status == 403


# --- The request's id, the actor -------------------------------------------------------------------------------------


async def test_every_answer_carries_a_request_id_of_its_own(world: World) -> None:
    ann = await world.person()
    ask = world.v3.ask
    answers = [
        await ann.does("getmessagesforeveryone", count=1),
        await ann.does("getmessagesforeveryone", count=0),
        await ann.does("sendmessage", channel=fresh("nowhere"), message="hello"),
        await ann.does("senddcmsgwithtoken", message="hello"),
        await world.v3.call("getchannels", token=NO_SUCH_TOKEN),
        await ask("/api/v3/login", b"x" * 70_000),
        await ask("/api/v3/login", method="GET"),
        await ask("/nowhere"),
        await ask("/healthz", method="GET"),
        await ask("/readyz", method="GET"),
    ]

    assert [answer.status for answer in answers] == [200, 400, 404, 503, 401, 413, 405, 404, 200, 200]
    assert all(UUID.fullmatch(answer.request_id) for answer in answers)
    assert len({answer.request_id for answer in answers}) == len(answers)
    assert {answer.headers["Content-Type"] for answer in answers} == {"application/json; charset=UTF-8"}


async def test_the_request_id_and_the_actor_stand_in_the_metadata_of_the_events(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    channel = await ann.makes()
    message_id = await ann.sends(channel, "to be deleted")
    newcomer = credentials()
    calls: list[tuple[str, Fields, list[str]]] = [
        ("register", newcomer, ["UsernameClaimed", "AccountRegistered"]),
        ("generatetoken", newcomer, ["TokenIssued"]),
        ("makechannel", {"token": ann.token, "name": fresh("den")}, ["ChannelCreated"]),
        ("addusertochannel", {"token": ann.token, "name": channel, "username": bob.username}, ["MemberAdded"]),
        ("sendmessage", {"token": ann.token, "channel": channel, "message": "x"}, ["MessageSent"]),
        ("senddm", {"token": ann.token, "username": bob.username, "message": "x"}, ["DirectMessageSent"]),
        ("deletemessage", {"token": ann.token, "message_id": message_id}, ["MessageDeleted"]),
    ]
    ann_id = (await world.commands.authenticate(ann.token)).account_id

    for endpoint, fields, types in calls:
        before = await world.log.head()
        answer = await world.v3.call(endpoint, **fields)
        events = await world.events_after(before)
        assert [event.type for event in events] == types
        metadata = [json.loads(event.metadata) for event in events]
        assert {one["correlation_id"] for one in metadata} == {answer.request_id}
        # Who registers is the newest account: people are numbered as they come, and Ann came before.
        newcomer_id = (await whole_accounts(world))[-1]
        assert {one["actor"] for one in metadata} == {ann_id if "token" in fields else newcomer_id}


async def whole_accounts(world: World) -> list[int]:
    return [event.body()["account_id"] for event in await whole_log(world) if event.type == "AccountRegistered"]


async def test_what_is_refused_or_only_read_records_nothing(world: World) -> None:
    ann, stranger = await world.person(), await world.person()
    channel = await ann.makes()
    message_id = await ann.sends(channel, "hello")
    before = await world.log.head()

    answers = [
        await world.v3.call("register", **credentials(ann.username)),
        await world.v3.call("login", **credentials(ann.username)),
        await world.v3.call("gettoken", **credentials(ann.username)),
        await world.v3.call("generatetoken", **credentials(ann.username, "0therPassw0rd!")),
        await ann.does("makechannel", name=channel),
        await ann.does("readmessagesfromchannel", name=channel, count=1),
        await stranger.does("sendmessage", channel=channel, message="x"),
        await stranger.does("senddm", username=fresh("Nobody"), message="x"),
        await stranger.does("deletemessage", message_id=message_id),
        await stranger.does("addusertochannel", name=channel, username=stranger.username),
    ]

    assert [answer.status for answer in answers] == [401, 200, 200, 401, 409, 200, 401, 404, 403, 401]
    assert await world.log.head() == before


# --- Idempotency-Key -------------------------------------------------------------------------------------------------


async def test_the_same_idempotency_key_twice_is_one_message(world: World) -> None:
    ann, bob, channel = await two_in_a_channel(world)
    key = {"Idempotency-Key": fresh("key-")}
    message: Fields = {"channel": channel, "message": "once"}
    direct: Fields = {"username": bob.username, "message": "once"}
    before = await world.log.head()

    at_once = await asyncio.gather(*(ann.does("sendmessage", key, **message) for _ in range(5)))
    later = await ann.does("sendmessage", key, **message)
    # The same key for another kind of command is another command.
    dms = [await ann.does("senddm", key, **direct) for _ in range(2)]

    assert [answer.said for answer in (*at_once, later)] == [SENT] * 6
    assert [answer.said for answer in dms] == [DM_SENT] * 2
    assert [event.type for event in await world.events_after(before)] == ["MessageSent", "DirectMessageSent"]
    assert texts(await bob.reads(channel)) == ["once"]
    assert texts(await bob.dms()) == ["once"]


async def test_another_accounts_same_idempotency_key_is_another_command(world: World) -> None:
    ann, bob, channel = await two_in_a_channel(world)
    key = {"Idempotency-Key": fresh("key-")}

    for person in (ann, bob, ann, bob):
        await person.does("sendmessage", key, channel=channel, message=f"from {person.username}")

    assert texts(await ann.reads(channel)) == [f"from {ann.username}", f"from {bob.username}"]


async def test_without_an_idempotency_key_the_same_text_twice_is_two_messages(world: World) -> None:
    ann = await world.person()
    channel = await ann.makes()

    await ann.sends(channel, "again")
    await ann.sends(channel, "again")

    assert texts(await ann.reads(channel)) == ["again", "again"]


async def test_an_idempotency_key_of_a_refused_message_is_still_good(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    channel = await ann.makes()
    key = {"Idempotency-Key": fresh("key-")}

    refused = await bob.does("sendmessage", key, channel=channel, message="hello")
    await ann.brings(bob, channel)
    sent = await bob.does("sendmessage", key, channel=channel, message="hello")

    assert [refused.said, sent.said] == [NOT_IN_CHANNEL, SENT]
    assert texts(await ann.reads(channel)) == ["hello"]


@pytest.mark.parametrize("key", ["", "k" * 256, "two words", "caf\u00e9"])
async def test_an_idempotency_key_of_another_form_is_400(world: World, key: str) -> None:
    ann = await world.person()
    channel = await ann.makes()

    answer = await ann.does("sendmessage", {"Idempotency-Key": key}, channel=channel, message="hello")

    assert answer.said == (400, {"message": "Idempotency-Key: must be 1 to 255 visible ASCII characters"})
    assert await ann.reads(channel) == []
