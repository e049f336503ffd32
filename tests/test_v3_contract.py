"""Button API V3 over HTTP, to the letter: one test for each answer that the published document names.

The document's words stand above each test; where it says the same of many endpoints, one test runs over all of them.
Status and body must be exactly these, keys and misspellings included.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from tests.v3client import PASSWORD, World, fresh, keys, own_loop, own_world, registered, texts, two_in_a_channel
from tests.v3words import (
    BAD_USERNAME,
    BY_PASSWORD,
    INVALID_TOKEN,
    NEEDS_DISCORD,
    NO_DISCORD,
    NO_SUCH_TOKEN,
    UUID,
    WEAK_PASSWORD,
    WITH_TOKEN,
    Fields,
)

pytestmark = pytest.mark.gen_test


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def world(io_loop: IOLoop, cluster: str) -> Iterator[World]:
    yield from own_world(io_loop, cluster)


# --- Accounting system -----------------------------------------------------------------------------------------------


# register: "it should return {'message' : 'User registered successfully!'} , 201"
async def test_register_answers_201_user_registered_successfully(world: World) -> None:
    answer = await world.v3.call("register", username=fresh("Name"), password=PASSWORD)

    assert answer.said == (201, {"message": "User registered successfully!"})


# register, login, generatetoken, gettoken: "if password doesnt meet the requirements {'message' : 'Password needs to
# have 8-20 chars minimum one number minimum one capital letter minimum one special symbol no empty symbols!'}, 411"
@pytest.mark.parametrize("endpoint", BY_PASSWORD)
async def test_a_password_that_does_not_meet_the_requirements_is_411(world: World, endpoint: str) -> None:
    answer = await world.v3.call(endpoint, username=fresh("Name"), password="password")

    assert answer.said == WEAK_PASSWORD


# register, login, generatetoken, gettoken: "if username doesnt meet the requirements {'message' : 'Username needs to be
# 3-20 chars long!'}, 411"
@pytest.mark.parametrize("endpoint", BY_PASSWORD)
async def test_a_username_that_does_not_meet_the_requirements_is_411(world: World, endpoint: str) -> None:
    answer = await world.v3.call(endpoint, username="ab", password=PASSWORD)

    assert answer.said == BAD_USERNAME


# register: "if a user with the username exists {'message' : 'User exists!'}, 401"
async def test_register_of_a_username_that_exists_is_401_user_exists(world: World) -> None:
    taken = await registered(world)

    answer = await world.v3.call("register", username=taken["username"], password="0therPassw0rd!")

    assert answer.said == (401, {"message": "User exists!"})


# login: "it should return {'message' : 'Login successful!'}, 200"
async def test_login_answers_200_login_successful(world: World) -> None:
    answer = await world.v3.call("login", **await registered(world))

    assert answer.said == (200, {"message": "Login successful!"})


# login, generatetoken, gettoken: "if wrong password or username {'message' : 'Invalid username or password!'}, 401"
@pytest.mark.parametrize("endpoint", ["login", "generatetoken", "gettoken"])
async def test_a_wrong_password_is_401_invalid_username_or_password(world: World, endpoint: str) -> None:
    somebody = await registered(world)

    answer = await world.v3.call(endpoint, username=somebody["username"], password="0therPassw0rd!")

    assert answer.said == (401, {"message": "Invalid username or password!"})


# the same: "if wrong password or username"
@pytest.mark.parametrize("endpoint", ["login", "generatetoken", "gettoken"])
async def test_a_wrong_username_is_401_invalid_username_or_password(world: World, endpoint: str) -> None:
    answer = await world.v3.call(endpoint, username=fresh("Nobody"), password=PASSWORD)

    assert answer.said == (401, {"message": "Invalid username or password!"})


# --- Token system ----------------------------------------------------------------------------------------------------


# generatetoken: "it should return {'message' : 'Made token!',"token" :"8e27530f-309d-44c6-93c9-650b6fddf025"}, 200"
async def test_generatetoken_answers_200_made_token_with_a_uuid(world: World) -> None:
    answer = await world.v3.call("generatetoken", **await registered(world))

    assert answer.status == 200
    assert keys(answer.body) == ["message", "token"]
    assert answer.body["message"] == "Made token!"
    assert UUID.fullmatch(answer.body["token"])


# generatetoken: "if token existed then it should change it {'message' : 'Changed token!',"token" :"8e27530f-…"}, 200"
async def test_generatetoken_answers_200_changed_token_with_another_uuid_if_one_existed(world: World) -> None:
    somebody = await registered(world)
    first = await world.v3.call("generatetoken", **somebody)

    answer = await world.v3.call("generatetoken", **somebody)

    assert answer.status == 200
    assert keys(answer.body) == ["message", "token"]
    assert answer.body["message"] == "Changed token!"
    assert UUID.fullmatch(answer.body["token"])
    assert answer.body["token"] != first.body["token"]


# gettoken: "it should return {'message' :'Returning token!',"token" :"8e27530f-309d-44c6-93c9-650b6fddf025"}, 200"
async def test_gettoken_answers_200_returning_token_with_the_newest_one(world: World) -> None:
    somebody = await registered(world)
    await world.v3.call("generatetoken", **somebody)
    newest = await world.v3.call("generatetoken", **somebody)

    answer = await world.v3.call("gettoken", **somebody)

    assert answer.said == (200, {"message": "Returning token!", "token": newest.body["token"]})


# gettoken: "if the token doesnt exist it should return {'message' : 'No token!'},401"
async def test_gettoken_of_an_account_without_a_token_is_401_no_token(world: World) -> None:
    answer = await world.v3.call("gettoken", **await registered(world))

    assert answer.said == (401, {"message": "No token!"})


# --- Every request that needs a token --------------------------------------------------------------------------------


# "if the token is invalid {'message' : 'Invalid token!'}, 401": 14 times in the document
@pytest.mark.parametrize(("endpoint", "fields"), WITH_TOKEN)
@pytest.mark.parametrize("token", [NO_SUCH_TOKEN, "", "no uuid \U0001f600"])
async def test_an_invalid_token_is_401_invalid_token(world: World, endpoint: str, fields: Fields, token: str) -> None:
    answer = await world.v3.call(endpoint, token=token, **fields)

    assert answer.said == (401, {"message": "Invalid token!"})


# --- Messaging system ------------------------------------------------------------------------------------------------


# getmessagesforeveryone: "it should return {'message' :'Got messages!',"messages" : [...]}, 200"
async def test_getmessagesforeveryone_answers_200_got_messages(world: World) -> None:
    await (await world.operator()).sends("announce", text := fresh("news"))

    answer = await (await world.person()).does("getmessagesforeveryone", count="1")

    assert answer.status == 200
    assert keys(answer.body) == ["message", "messages"]
    assert answer.body["message"] == "Got messages!"
    assert texts(answer.body["messages"]) == [text]


# getmysentmessages: "it should return {"sent_messages" : [...]}, 200"
async def test_getmysentmessages_answers_200_with_the_messages_that_its_caller_sent(world: World) -> None:
    ann, bob, channel = await two_in_a_channel(world)
    message_id = await ann.sends(channel, "mine")
    await bob.sends(channel, "not mine")
    [mine, _] = await ann.reads(channel)

    answer = await ann.does("getmysentmessages")

    assert answer.said == (200, {"sent_messages": [mine]})
    assert mine["message_id"] == message_id


# getmysentmessages: "if the user has no sent messages {'message' : 'No sent messages!'}, 404"
async def test_getmysentmessages_of_somebody_who_sent_none_is_404_no_sent_messages(world: World) -> None:
    answer = await (await world.person()).does("getmysentmessages")

    assert answer.said == (404, {"message": "No sent messages!"})


# readmessagesfromchannel, "Reading messages from message id": "it should return {"messages" : [...]}, 200"
async def test_readmessagesfromchannel_with_a_message_id_answers_200_with_that_message(world: World) -> None:
    ann, bob, channel = await two_in_a_channel(world)
    message_id = await ann.sends(channel, "the one")
    await ann.sends(channel, "another one")

    answer = await bob.does("readmessagesfromchannel", message_id=str(message_id))

    assert answer.status == 200
    assert keys(answer.body) == ["messages"]
    [message] = answer.body["messages"]
    assert (message["message_id"], message["message"]) == (message_id, "the one")


# readmessagesfromchannel: "if the user cannot read the message {'message' : 'Your not allowed to read this message!'},
# 403"
async def test_readmessagesfromchannel_with_the_id_of_others_message_is_403(world: World) -> None:
    ann, _, channel = await two_in_a_channel(world)
    message_id = await ann.sends(channel, "not for everyone")

    answer = await (await world.person()).does("readmessagesfromchannel", message_id=message_id)

    assert answer.said == (403, {"message": "Your not allowed to read this message!"})


# readmessagesfromchannel: "if the message doesnt exist {'message' : 'Message not found!''}, 404"
async def test_readmessagesfromchannel_with_an_id_that_does_not_exist_is_404(world: World) -> None:
    answer = await (await world.person()).does("readmessagesfromchannel", message_id=2**63 - 1)

    assert answer.said == (404, {"message": "Message not found!"})


# deletemessage: "it should return {"message" : "Message deleted!"}, 200"
async def test_deletemessage_answers_200_message_deleted(world: World) -> None:
    ann = await world.person()
    message_id = await ann.sends(await ann.makes(), "to be deleted")

    answer = await ann.does("deletemessage", message_id=str(message_id))

    assert answer.said == (200, {"message": "Message deleted!"})


# deletemessage: "if the message is not found {'message' : 'Message not found!'}, 404"
async def test_deletemessage_of_one_that_does_not_exist_is_404(world: World) -> None:
    answer = await (await world.person()).does("deletemessage", message_id=2**63 - 1)

    assert answer.said == (404, {"message": "Message not found!"})


# deletemessage: "if message is not the users {'message' : 'You can only delete your messages!'}, 403"
async def test_deletemessage_of_somebody_elses_is_403_and_leaves_it(world: World) -> None:
    ann, bob, channel = await two_in_a_channel(world)
    message_id = await ann.sends(channel, "mine")

    answer = await bob.does("deletemessage", message_id=message_id)

    assert answer.said == (403, {"message": "You can only delete your messages!"})
    assert texts(await bob.reads(channel)) == ["mine"]


# --- Channel system --------------------------------------------------------------------------------------------------


# makechannel: "it should return {'message' :'Channel created!','channel_name' :'your_channel_name','channel_id'
# :10124}, 200"
async def test_makechannel_answers_200_channel_created_with_name_and_id(world: World) -> None:
    name = fresh("your_channel_name")

    answer = await (await world.person()).does("makechannel", name=name)

    assert answer.status == 200
    assert keys(answer.body) == ["channel_id", "channel_name", "message"]
    assert (answer.body["message"], answer.body["channel_name"]) == ("Channel created!", name)
    assert type(answer.body["channel_id"]) is int


# addusertochannel: "it should return {'message' :'User added to channel!','channel_name' :'your channels
# name','username' :'username of person to add'}, 200"
async def test_addusertochannel_answers_200_user_added_with_both_names(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    channel = await ann.makes()

    answer = await ann.does("addusertochannel", name=channel, username=bob.username)

    expected = {"message": "User added to channel!", "channel_name": channel, "username": bob.username}
    assert answer.said == (200, expected)


# addusertochannel: "if the channel doesnt exist {'message' : 'Channel not found!'}, 404"
async def test_addusertochannel_to_one_that_does_not_exist_is_404(world: World) -> None:
    ann = await world.person()

    answer = await ann.does("addusertochannel", name=fresh("nowhere"), username=ann.username)

    assert answer.said == (404, {"message": "Channel not found!"})


# addusertochannel: "if the user is not in the channel {'message' : 'You are not in this channel!'}, 401"
async def test_addusertochannel_by_somebody_who_is_not_in_it_is_401(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    channel = await ann.makes()

    answer = await bob.does("addusertochannel", name=channel, username=bob.username)

    assert answer.said == (401, {"message": "You are not in this channel!"})


# readmessagesfromchannel, "Reading messages from a channel": "it should return {"messages" : [...]}, 200"
async def test_readmessagesfromchannel_with_a_name_answers_200_with_its_messages(world: World) -> None:
    ann, bob, channel = await two_in_a_channel(world)
    first, second = await ann.sends(channel, "first"), await bob.sends(channel, "second")

    answer = await bob.does("readmessagesfromchannel", name=channel, count="10")

    assert answer.status == 200
    assert keys(answer.body) == ["messages"]
    shown = [(m["message_id"], m["sender"], m["message"], m["channel"]) for m in answer.body["messages"]]
    assert shown == [(first, ann.username, "first", channel), (second, bob.username, "second", channel)]


# readmessagesfromchannel: "if the channel doesnt exist {'message' : 'Channel not found!'}, 404"
async def test_readmessagesfromchannel_with_a_name_that_does_not_exist_is_404(world: World) -> None:
    answer = await (await world.person()).does("readmessagesfromchannel", name=fresh("nowhere"), count="10")

    assert answer.said == (404, {"message": "Channel not found!"})


# readmessagesfromchannel: "if user not in channel {'message' : 'You are not in this channel!'}, 401"
async def test_readmessagesfromchannel_by_somebody_who_is_not_in_it_is_401(world: World) -> None:
    channel = await (await world.person()).makes()

    answer = await (await world.person()).does("readmessagesfromchannel", name=channel, count="10")

    assert answer.said == (401, {"message": "You are not in this channel!"})


# sendmessage: "it should return {'message' :'Message sent!'}, 200"
async def test_sendmessage_answers_200_message_sent(world: World) -> None:
    ann = await world.person()
    channel = await ann.makes()

    answer = await ann.does("sendmessage", message="hello", channel=channel)

    assert answer.said == (200, {"message": "Message sent!"})
    assert texts(await ann.reads(channel)) == ["hello"]


# sendmessage: "if the channel doesnt exist {'message' : 'Channel not found!'}, 404"
async def test_sendmessage_to_a_channel_that_does_not_exist_is_404(world: World) -> None:
    answer = await (await world.person()).does("sendmessage", message="hello", channel=fresh("nowhere"))

    assert answer.said == (404, {"message": "Channel not found!"})


# sendmessage: "if user not in channel {'message' : 'You are not in this channel!'}, 401"
async def test_sendmessage_by_somebody_who_is_not_in_it_is_401_and_sends_nothing(world: World) -> None:
    ann = await world.person()
    channel = await ann.makes()

    answer = await (await world.person()).does("sendmessage", message="hello", channel=channel)

    assert answer.said == (401, {"message": "You are not in this channel!"})
    assert await ann.reads(channel) == []


# getchannels: "it should return {"channels" : [...]}, 200"
async def test_getchannels_answers_200_with_names_and_ids(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    [made, joined] = [await person.does("makechannel", name=fresh("den")) for person in (ann, bob)]
    await bob.brings(ann, joined.body["channel_name"])

    answer = await ann.does("getchannels")

    channels = [{key: made.body[key] for key in ("channel_name", "channel_id")} for made in (made, joined)]
    assert answer.said == (200, {"channels": channels})


# getchannels: "if you are not in any channels it should return {'message' : 'You are not in any channels!'}, 404"
async def test_getchannels_of_somebody_in_none_is_404(world: World) -> None:
    answer = await (await world.person()).does("getchannels")

    assert answer.said == (404, {"message": "You are not in any channels!"})


# --- Dm system -------------------------------------------------------------------------------------------------------


# getdms: "it should return {"dms" : [...]}, 200"
async def test_getdms_answers_200_with_the_messages(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    message_id = await ann.writes_to(bob, "psst")

    answer = await bob.does("getdms", count="10")

    assert answer.status == 200
    assert keys(answer.body) == ["dms"]
    shown = [(dm["message_id"], dm["sender"], dm["message"], dm["recipient"]) for dm in answer.body["dms"]]
    assert shown == [(message_id, ann.username, "psst", bob.username)]


# getdms: "if the user has no dms {'message' : 'No dms!'}, 404"
async def test_getdms_of_somebody_without_any_is_404(world: World) -> None:
    answer = await (await world.person()).does("getdms", count="10")

    assert answer.said == (404, {"message": "No dms!"})


# senddm: "it should return {"message" : "Dm message sent!"}, 200"
async def test_senddm_answers_200_dm_message_sent(world: World) -> None:
    ann, bob = await world.person(), await world.person()

    answer = await ann.does("senddm", username=bob.username, message="psst")

    assert answer.said == (200, {"message": "Dm message sent!"})
    assert texts(await bob.dms()) == ["psst"]


# senddm: "if the user is not found {'message' : 'User not found!'}, 404"
async def test_senddm_to_nobody_is_404_user_not_found(world: World) -> None:
    answer = await (await world.person()).does("senddm", username=fresh("Nobody"), message="psst")

    assert answer.said == (404, {"message": "User not found!"})


# --- Discord ---------------------------------------------------------------------------------------------------------


# Instead of "Sent message!", "Dm message sent!" and "Invalid input or user not in channel", which are answered where
# there is a Discord (`test_v3_discord`). The contract: "No Discord configured: 503 {"message": "Discord is not
# configured!"}"
@pytest.mark.parametrize(("endpoint", "fields"), NEEDS_DISCORD)
async def test_messages_to_discord_are_503_after_the_token_check(world: World, endpoint: str, fields: Fields) -> None:
    ann = await world.person()
    before = await world.log.head()

    unknown = await world.v3.call(endpoint, token=NO_SUCH_TOKEN, **fields)
    answer = await ann.does(endpoint, **fields)

    assert unknown.said == INVALID_TOKEN
    assert answer.said == NO_DISCORD
    assert await world.log.head() == before
