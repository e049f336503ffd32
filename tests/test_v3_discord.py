"""V3 where there is a Discord: what the document names of it to the letter, and what goes beyond it.

What is delivered is told by the tests; that it is delivered is held by the tests of the bridge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop

from chat.bridging import Bridging
from chat.moderation import Moderation
from chat.refusals import Reason, Refused
from chat.sources import SourceSeal
from handlers.limits import SlidingWindow
from tests.bridged import CONTEXT, Bridge, bridge_of, fresh_id
from tests.conftest import OPERATOR, SECRET
from tests.v3client import V3, Answer, Person, World, fresh, own_loop, own_world, serving, texts, two_in_a_channel
from tests.v3words import (
    DM_SENT,
    INVALID_TOKEN,
    NEEDS_DISCORD,
    NO_DISCORD,
    NO_SUCH_TOKEN,
    NOT_REACHABLE,
    SENT_TO_DISCORD,
    Fields,
)

pytestmark = pytest.mark.gen_test

CHANNEL = fresh_id()


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def world(io_loop: IOLoop, cluster: str) -> Iterator[World]:
    yield from own_world(io_loop, cluster, CHANNEL)


@pytest.fixture
def bridge(world: World) -> Bridge:
    return bridge_of(world)


async def asked(person: Person, query: str = "") -> Answer:
    """What `deliveries` answers somebody."""
    bearer = {"Authorization": f"Bearer {person.token}"}
    return await person.v3.ask(f"/api/v3/deliveries{query}", headers=bearer, method="GET")


async def deliveries(person: Person, query: str = "") -> list[dict[str, Any]]:
    """The deliveries of somebody."""
    answer = await asked(person, query)
    assert (answer.status, list(answer.body)) == (200, ["deliveries"]), answer
    return list(answer.body["deliveries"])


# --- What the document says ------------------------------------------------------------------------------------------


# senddcmsgwithtoken: "it should return {'message' :'Sent message!'}, 200"
async def test_senddcmsgwithtoken_answers_200_sent_message_and_asks_for_its_delivery(world: World) -> None:
    ann = await world.person()
    before = await world.log.head()

    answer = await ann.does("senddcmsgwithtoken", message="Hello, @everyone!")

    assert answer.said == SENT_TO_DISCORD
    [requested] = await world.events_after(before)
    body = requested.body()
    assert (requested.type, body["discord_channel_id"]) == ("DiscordMessageRequested", str(CHANNEL))
    assert (body["discord_user_id"], body["text"]) == (None, "Hello, @everyone!")
    assert SourceSeal(SECRET).open(body["source"]) == "127.0.0.1"
    assert answer.request_id.encode() in requested.metadata


# senddcmsg: "Send a message to a channel ... it should return {"message" : "Dm message sent!"}, 200"
async def test_senddcmsg_to_a_bridged_channel_answers_200_and_is_a_message_there(world: World, bridge: Bridge) -> None:
    ann, bob, channel = await two_in_a_channel(world)
    discord_channel = await bridge.joins(ann, channel)

    answer = await bob.does("senddcmsg", channel=f"#{channel.upper()}", message="hello")

    assert answer.said == DM_SENT
    message = await ann.newest(channel)
    assert (message["sender"], message["message"]) == (bob.username, "hello")
    [delivery] = await deliveries(bob)
    assert delivery["to"] == {"channel": str(discord_channel)}
    assert delivery["message_id"] == message["message_id"]


# senddcmsg: "Send a message to a person (needs to be logged by messaging buttonapi bot) ... {"message" : "Dm message
# sent!"}, 200"
async def test_senddcmsg_to_a_person_answers_200_and_asks_for_its_delivery(world: World, bridge: Bridge) -> None:
    ann, bob = await world.person(), await world.person()
    stranger, linked = await bridge.meets(), await bridge.links(bob)

    answers = [
        await ann.does("senddcmsg", channel=name, message=f"to {name}")
        for name in (stranger.username.upper(), bob.username.lower(), linked.username)
    ]

    assert [answer.said for answer in answers] == [DM_SENT] * 3
    assert {delivery["message_id"] for delivery in await deliveries(ann)} == {None}


async def test_nobody_learns_by_writing_to_them_which_account_somebody_on_discord_is(
    world: World, bridge: Bridge
) -> None:
    ann, bob, eve = await world.person(), await world.person(), await world.person()
    called = [(await bridge.meets()).username, bob.username, (linked := await bridge.links(bob)).username]
    for name in called:
        await ann.does("senddcmsg", channel=name, message="hello")
    # Nor later, when they are no account any more, or another one.
    shown = [[delivery["to"] for delivery in await deliveries(ann)]]
    await bridge.bridging.unlink(linked, CONTEXT)
    shown.append([delivery["to"] for delivery in await deliveries(ann)])
    code = (await eve.does("linkdiscord")).body["code"]
    await bridge.bridging.link(linked, code, CONTEXT)
    shown.append([delivery["to"] for delivery in await deliveries(ann)])

    assert shown == [[{"person": name} for name in called]] * 3


# senddcmsg: "if the user is not in the channel {'message': 'Invalid input or user not in channel'}, 400", and the same
# "if the user is not in the "dm channel""
async def test_senddcmsg_to_anything_else_is_400_invalid_input_or_user_not_in_channel(
    world: World, bridge: Bridge
) -> None:
    ann, stranger = await world.person(), await world.person()
    bridged, alone = await ann.makes(), await ann.makes()
    await bridge.joins(ann, bridged)
    before = await world.log.head()

    answers = [
        await stranger.does("senddcmsg", channel=bridged, message="hello"),
        await ann.does("senddcmsg", channel=alone, message="hello"),
        await ann.does("senddcmsg", channel=stranger.username, message="hello"),
        await ann.does("senddcmsg", channel="", message="hello"),
    ]

    assert [answer.said for answer in answers] == [NOT_REACHABLE] * 4
    assert await world.log.head() == before


# senddcmsgwithtoken, senddcmsg: "if the token is invalid {'message' : 'Invalid token!'}, 401"
@pytest.mark.parametrize(("endpoint", "fields"), [*NEEDS_DISCORD, ("linkdiscord", {})])
async def test_an_invalid_token_is_401(world: World, endpoint: str, fields: Fields) -> None:
    answer = await world.v3.call(endpoint, token=NO_SUCH_TOKEN, **fields)

    assert answer.said == INVALID_TOKEN


# --- Sending, as the rest of V3 does ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [" ", "\n\t\u3000", "x" * 4001])
async def test_what_discord_would_not_take_is_400_and_nothing_is_recorded(world: World, text: str) -> None:
    ann = await world.person()
    before = await world.log.head()

    answers = [
        await ann.does("senddcmsgwithtoken", message=text),
        await ann.does("senddcmsg", channel="announce", message=text),
    ]

    assert [answer.status for answer in answers] == [400] * 2
    assert all(answer.body["message"].startswith("message: ") for answer in answers)
    assert await world.log.head() == before


async def test_a_repeat_with_the_same_idempotency_key_is_delivered_once(world: World, bridge: Bridge) -> None:
    ann = await world.person()
    channel, stranger = await ann.makes(), await bridge.meets()
    await bridge.joins(ann, channel)
    key = {"Idempotency-Key": "once"}

    for _ in range(2):
        assert (await ann.does("senddcmsgwithtoken", key, message="to all")).said == SENT_TO_DISCORD
        for to in (channel, stranger.username):
            assert (await ann.does("senddcmsg", key, channel=to, message=f"to {to}")).said == DM_SENT

    assert texts(await deliveries(ann)) == ["to all", f"to {channel}", f"to {stranger.username}"]


async def test_messages_to_discord_count_against_the_limit(
    world: World, bridge: Bridge, http_client: AsyncHTTPClient
) -> None:
    ann, stranger = await world.person(), await bridge.meets()
    limited = dataclasses.replace(world.services, messages_per_account=SlidingWindow(3, seconds=60))
    async with serving(limited) as port:
        there = ann._replace(v3=V3(f"http://127.0.0.1:{port}", http_client))
        answers = [
            await there.does("senddm", username=ann.username, message="one"),
            await there.does("senddcmsgwithtoken", message="two"),
            await there.does("senddcmsg", channel=stranger.username, message="three"),
            await there.does("senddcmsg", channel=stranger.username, message="four"),
            await there.does("senddcmsgwithtoken", message="five"),
        ]

    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert texts(await deliveries(ann)) == ["two", "three"]


async def test_who_is_silenced_sends_nothing_to_discord(world: World, bridge: Bridge) -> None:
    ann, stranger = await world.person(), await bridge.meets()
    await world.operator()
    models = world.services.models
    operator = await models.account_by_name(OPERATOR.lower())
    assert operator is not None
    await Moderation(world.log, models, [OPERATOR]).silence(operator, ann.username, 60, "", "c")

    answers = [
        await ann.does("senddcmsgwithtoken", message="hello"),
        await ann.does("senddcmsg", channel=stranger.username, message="hello"),
    ]

    assert [answer.status for answer in answers] == [403] * 2
    assert await deliveries(ann) == []


# --- Linking ---------------------------------------------------------------------------------------------------------


async def test_linkdiscord_gives_a_code_that_links_the_account_once(world: World, bridge: Bridge) -> None:
    ann = await world.person()
    before = await world.log.head()

    made = await ann.does("linkdiscord")

    assert (made.status, made.body["message"], made.body["expires_in"]) == (200, "Link code made!", 600)
    assert await world.log.head() == before
    first, second = await bridge.meets(), await bridge.meets()
    linked = await bridge.bridging.link(first, made.body["code"], CONTEXT)
    assert linked.username == ann.username
    with pytest.raises(Refused) as refused:
        await bridge.bridging.link(second, made.body["code"], CONTEXT)
    assert refused.value.reason is Reason.WRONG_LINK_CODE


# --- Deliveries ------------------------------------------------------------------------------------------------------


async def test_deliveries_tells_what_has_become_of_each_text(world: World, bridge: Bridge) -> None:
    ann = await world.person()
    channel = await ann.makes()
    discord_channel = await bridge.joins(ann, channel)
    parts = fresh_id(), fresh_id()
    await ann.does("senddcmsgwithtoken", message="taken")
    taken = await bridge.delivers(ann, *parts)
    await ann.does("senddcmsgwithtoken", message="given up")
    given_up = await bridge.fails(ann, "unknown channel")
    deleted = await ann.sends(channel, "deleted")
    await ann.does("deletemessage", message_id=deleted)
    waits = await ann.sends(channel, "waits")

    first, second, third, last = await deliveries(ann)

    assert first == {
        "delivery_id": taken.delivery_id,
        "message_id": None,
        "to": {"channel": str(CHANNEL)},
        "message": "taken",
        "status": "delivered",
        "discord_message_ids": [str(part) for part in parts],
        "reason": None,
        "requested_at": first["requested_at"],
        "settled_at": first["settled_at"],
    }
    assert second["delivery_id"] == given_up.delivery_id
    assert (second["status"], second["reason"], second["discord_message_ids"]) == ("failed", "unknown channel", [])
    assert first["requested_at"] < first["settled_at"] < second["requested_at"] < second["settled_at"]
    assert (third["status"], third["message_id"], third["settled_at"]) == ("withdrawn", deleted, None)
    assert (last["status"], last["message_id"], last["reason"]) == ("waiting", waits, None)
    assert last["to"] == {"channel": str(discord_channel)}


async def test_what_was_delivered_after_all_has_no_reason_to_fail(world: World, bridge: Bridge) -> None:
    ann = await world.person()
    await ann.does("senddcmsgwithtoken", message="late")
    await bridge.fails(ann, "given up")
    await bridge.delivers(ann, fresh_id())

    [delivery] = await deliveries(ann)

    assert (delivery["status"], delivery["reason"]) == ("delivered", None)


async def test_deliveries_are_the_senders_alone_and_the_newest_of_them_in_order(world: World) -> None:
    ann, bob = await world.person(), await world.person()
    for person, text in ((ann, "one"), (bob, "another's"), (ann, "two"), (ann, "three")):
        await person.does("senddcmsgwithtoken", message=text)

    assert texts(await deliveries(ann)) == ["one", "two", "three"]
    assert texts(await deliveries(ann, "/?count=2")) == ["two", "three"]
    assert texts(await deliveries(ann, "?count=1&count=5000&more=x")) == ["one", "two", "three"]
    assert texts(await deliveries(bob)) == ["another's"]
    assert await deliveries(await world.person()) == []


@pytest.mark.parametrize("count", ["0", "", "many", "-1", "%FF", "1%002"])
async def test_a_count_that_is_none_is_400_before_the_token_is_looked_at(world: World, count: str) -> None:
    answer = await world.v3.ask(f"/api/v3/deliveries?count={count}", method="GET")

    assert answer.status == 400
    assert answer.body["message"].startswith("count: ")


async def test_deliveries_takes_the_token_from_its_header_alone(world: World) -> None:
    ann = await world.person()
    headers = [{}, {"Authorization": ann.token}, {"Authorization": f"Basic {ann.token}"}, {"Authorization": "Bearer"}]

    answers = [
        await world.v3.ask(f"/api/v3/deliveries?token={ann.token}", headers=given, method="GET") for given in headers
    ]

    assert [answer.said for answer in answers] == [INVALID_TOKEN] * len(headers)
    small = {"Authorization": f"bearer   {ann.token}"}
    assert (await world.v3.ask("/api/v3/deliveries", headers=small, method="GET")).status == 200


async def test_deliveries_is_asked_by_get_alone(world: World) -> None:
    answer = await world.v3.ask("/api/v3/deliveries", b"{}")

    assert (answer.status, answer.headers["Allow"]) == (405, "GET")


# --- Without Discord -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_token", [True, False])
async def test_without_what_it_needs_of_discord_a_call_is_503_and_nothing_is_logged(
    world: World, has_token: bool, http_client: AsyncHTTPClient
) -> None:
    bridging = Bridging(
        world.log, world.services.models, world.commands, SECRET, default_channel=None, configured=has_token
    )
    without = dataclasses.replace(world.services, bridging=bridging)
    ann = await world.person()
    async with serving(without) as port:
        there = ann._replace(v3=V3(f"http://127.0.0.1:{port}", http_client))
        with capture_logs() as lines:
            answers = [
                await there.does("senddcmsgwithtoken", message="hello"),
                await there.does("senddcmsg", channel=fresh("nobody"), message="hello"),
                await there.does("linkdiscord"),
            ]
        assert (await asked(there)).body == {"deliveries": []}

    rest = [NOT_REACHABLE, (200, answers[-1].body)] if has_token else [NO_DISCORD] * 2
    assert [answer.said for answer in answers] == [NO_DISCORD, *rest]
    assert lines == []
