"""Bancho API v1 to the letter of its document, and where the document is silent as docs/bancho.md has it.

The texts are copied from the document and the contract by hand; nothing is taken from the code that is held to them.
"""

from __future__ import annotations

import dataclasses
import hmac
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop

from chat.commands import Account
from chat.events import DirectMessageSent, RestartRequested, decode
from chat.names import safe_name
from chat.refusals import Malformed
from eventstore.log import EventLog
from handlers.bancho.call import Call, MissingArguments
from handlers.services import Services
from tests.conftest import CI_KEY
from tests.servers import Server
from tests.servers import until as until_true
from tests.tables import Outage
from tests.test_ops import away, without_table
from tests.v3client import V3, Answer, Person, Wire, World, fresh, own_loop, own_world, request, serving, texts

FOKABOT = 999
OK: dict[str, Any] = {"status": 200, "message": "ok"}
WRONG_KEY = (400, {"status": 400, "message": "invalid ci key"})
MISSING = (400, {"status": 400, "message": "missing required arguments"})
NO_CHANNEL = (404, {"status": 404, "message": "channel not found"})
NO_USER = (404, {"status": 404, "message": "user not found"})
OFFLINE = (200, {"status": 200, "message": "user is offline, message not sent"})
BAD_METHOD = (405, {"status": 405, "message": "method not allowed"})
FAULT = (500, {"status": 500, "message": "internal error"})
AWAY = (503, {"status": 503, "message": "the log cannot be reached now, try again"})

# Every endpoint, with what it takes to be answered by 200, and whether it has a result.
CALLS: dict[str, tuple[dict[str, str], bool]] = {
    "isOnline": ({"id": "999"}, True),
    "onlineUsers": ({}, True),
    "serverStatus": ({}, True),
    "ciTrigger": ({"k": CI_KEY}, False),
    "fokabotMessage": ({"k": CI_KEY, "to": "#announce", "msg": "Hello"}, False),
    "verifiedStatus": ({"u": "1000"}, True),
}
NEED_KEY = ["ciTrigger", "fokabotMessage"]
NEED_LOG = [name for name in CALLS if name != "serverStatus"]


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def world(io_loop: IOLoop, cluster: str) -> Iterator[World]:
    yield from own_world(io_loop, cluster)


def ok(result: object = None) -> tuple[int, dict[str, Any]]:
    """The answer when all went well."""
    return 200, OK if result is None else {"result": result, **OK}


async def get(v3: V3, endpoint: str, query: str = "", **arguments: str) -> Answer:
    """Asks an endpoint; a query is given as it is sent, or as arguments to be encoded."""
    sent = query or urlencode(arguments)
    return await v3.ask(f"/api/v1/{endpoint}{'?' if sent else ''}{sent}", method="GET")


async def account_of(world: World, person: Person) -> Account:
    account = await world.services.models.account_by_name(safe_name(person.username))
    assert account is not None
    return account


@asynccontextmanager
async def online(world: World, person: Person, device: str | None = None) -> AsyncIterator[Account]:
    """Somebody is connected until this ends."""
    account = await account_of(world, person)
    connection_id = fresh("connection-")
    await world.services.connections.open(account, 1, connection_id, "test", device=device)
    yield account
    await world.services.connections.close(
        [(connection_id, account.account_id, await version(world, connection_id))], ""
    )


async def version(world: World, connection_id: str) -> int:
    history = await world.services.connections.history(connection_id)
    assert history is not None
    return history.version


@asynccontextmanager
async def changed(services: Services, **changes: Any) -> AsyncIterator[V3]:
    """A second server on the same log, of which something is different."""
    http = AsyncHTTPClient(force_instance=True)
    async with serving(dataclasses.replace(services, **changes)) as port:
        yield V3(f"http://127.0.0.1:{port}", http)
    http.close()


# --- All endpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("endpoint", list(CALLS))
@pytest.mark.gen_test
async def test_an_answer_has_the_documents_keys_in_its_order(world: World, endpoint: str, slash: str) -> None:
    arguments, has_result = CALLS[endpoint]

    answer = await get(world.v3, endpoint + slash, **arguments)

    assert answer.status == 200
    assert list(answer.body) == ["result"] * has_result + ["status", "message"]
    assert {key: answer.body[key] for key in OK} == OK
    assert answer.headers["Content-Type"].startswith("application/json")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("endpoint", list(CALLS))
@pytest.mark.gen_test
async def test_any_other_method_is_405(world: World, endpoint: str, method: str) -> None:
    answer = await world.v3.ask(f"/api/v1/{endpoint}?{urlencode(CALLS[endpoint][0])}", b"", method=method)

    assert answer.said == BAD_METHOD
    assert list(answer.body) == ["status", "message"]
    assert answer.headers["Allow"] == "GET"


@pytest.mark.gen_test
async def test_only_verified_status_may_be_read_by_pages_of_other_sites(world: World) -> None:
    answers = {name: await get(world.v3, name, **arguments) for name, (arguments, _) in CALLS.items()}
    refused = await get(world.v3, "verifiedStatus")

    allowed = {name: answer.headers.get("Access-Control-Allow-Origin") for name, answer in answers.items()}
    assert {name: origin for name, origin in allowed.items() if origin} == {"verifiedStatus": "*"}
    assert refused.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.gen_test
async def test_of_an_argument_that_is_given_twice_the_last_one_counts(world: World) -> None:
    assert (await get(world.v3, "isOnline", "u=nobody&u=FokaBot")).said == ok(True)
    assert (await get(world.v3, "isOnline", "u=FokaBot&u=nobody")).said == ok(False)


@pytest.mark.gen_test
async def test_what_needs_the_log_is_503_while_it_is_away(services: Services, log: EventLog, outage: Outage) -> None:
    async with changed(services) as v3:
        with away(outage):
            # FokaBot is online without anybody having to look.
            answers = {name: await get(v3, name, **CALLS[name][0] | {"id": "1000"}) for name in CALLS}

    assert {name: answer.said for name, answer in answers.items() if name in NEED_LOG} == dict.fromkeys(NEED_LOG, AWAY)
    assert {answers[name].headers["Retry-After"] for name in NEED_LOG} == {"1"}
    assert answers["serverStatus"].said == ok(1)


@pytest.mark.gen_test
async def test_an_unexpected_fault_is_500_internal_error(services: Services, log: EventLog, database: str) -> None:
    async with changed(services) as v3:
        with without_table(database, "connections"), capture_logs() as logged:
            answer = await get(v3, "onlineUsers")

    assert answer.said == FAULT
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["a request failed"]


# --- isOnline, onlineUsers, serverStatus -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query", ["id=999", "u=FokaBot", "u=fokabot", "u=%20FOKABOT%20", "id=%2B999", "id=0999", f"id={'0' * 40}999"]
)
@pytest.mark.gen_test
async def test_fokabot_is_always_online(world: World, query: str) -> None:
    assert (await get(world.v3, "isOnline", query)).said == (200, {"result": True, "status": 200, "message": "ok"})


@pytest.mark.gen_test
async def test_somebody_is_online_as_long_as_they_have_a_connection(world: World) -> None:
    ann = await world.v3.person(fresh("Some Body "))
    account = await account_of(world, ann)
    queries = [{"u": ann.username}, {"u": ann.username.upper().replace(" ", "_")}, {"id": str(account.account_id)}]
    before = [(await get(world.v3, "isOnline", **query)).said for query in queries]

    async with online(world, ann):
        async with online(world, ann):
            pass
        between = [(await get(world.v3, "isOnline", **query)).said for query in queries]
    after = [(await get(world.v3, "isOnline", **query)).said for query in queries]

    assert (before, between, after) == ([ok(False)] * 3, [ok(True)] * 3, [ok(False)] * 3)


@pytest.mark.parametrize("who", [{"u": "nobody at all"}, {"id": "5"}, {"id": "0"}, {"id": "-999"}, {"id": "9" * 400}])
@pytest.mark.gen_test
async def test_who_does_not_exist_is_not_online(world: World, who: dict[str, str]) -> None:
    assert (await get(world.v3, "isOnline", **who)).said == ok(False)


@pytest.mark.gen_test
async def test_u_wins_over_id(world: World) -> None:
    assert (await get(world.v3, "isOnline", u="nobody", id="999")).said == ok(False)
    assert (await get(world.v3, "isOnline", u="FokaBot", id="what?")).said == ok(True)
    assert (await get(world.v3, "isOnline", u="", id="999")).said == ok(True)


@pytest.mark.parametrize(
    "query", ["", "u=", "id=", "u=&id=", "id=FokaBot", "id=9.9", "id=0x3e7", "id=%20999", "id=%D9%A9"]
)
@pytest.mark.gen_test
async def test_without_a_username_and_a_whole_id_arguments_are_missing(world: World, query: str) -> None:
    assert (await get(world.v3, "isOnline", query)).said == MISSING


@pytest.mark.gen_test
async def test_online_users_are_accounts_with_the_bot_among_them(services: Services, log: EventLog) -> None:
    async with changed(services) as v3:
        world = World(v3, 0, log, services)
        counts = [await get(v3, "onlineUsers")]
        ann, bob = await world.person(), await world.person()
        async with online(world, ann), online(world, ann), online(world, bob):
            counts.append(await get(v3, "onlineUsers"))
        counts.append(await get(v3, "onlineUsers"))

    assert [count.said for count in counts] == [ok(1), ok(3), ok(1)]


@pytest.mark.parametrize(("restarting", "result"), [(False, 1), (True, -1)])
@pytest.mark.gen_test
async def test_server_status_tells_whether_it_serves_or_restarts(world: World, restarting: bool, result: int) -> None:
    async with changed(world.services, restarting=lambda: restarting) as v3:
        assert (await get(v3, "serverStatus")).said == ok(result)


# --- The key ---------------------------------------------------------------------------------------------------------

WRONG_KEYS = ["", "k=", "k=wrongkey", f"k={quote(CI_KEY[:-1])}", f"k={quote(CI_KEY)}%20", "k=%FF", "k=%00", "K=x"]


@pytest.mark.parametrize("query", WRONG_KEYS)
@pytest.mark.parametrize("endpoint", NEED_KEY)
@pytest.mark.gen_test
async def test_without_the_key_nothing_is_done_whatever_else_is_given(world: World, endpoint: str, query: str) -> None:
    before = await world.log.head()

    answers = [await get(world.v3, endpoint, f"{query}{more}") for more in ("&to=%23announce&msg=Hello", "&to=%FF")]

    assert [answer.said for answer in answers] == [WRONG_KEY] * 2
    assert await world.log.head() == before


@pytest.mark.parametrize("key", ["", "None", CI_KEY])
@pytest.mark.parametrize("endpoint", NEED_KEY)
@pytest.mark.gen_test
async def test_a_server_without_a_key_knows_no_right_one(world: World, endpoint: str, key: str) -> None:
    async with changed(world.services, ci_key=None) as v3:
        assert (await get(v3, endpoint, k=key, to="#announce", msg="Hello")).said == WRONG_KEY


@pytest.mark.gen_test
async def test_a_key_may_have_any_characters(world: World) -> None:
    key = "schlüssel & +=%/?#"
    async with changed(world.services, ci_key=key) as v3:
        assert (await get(v3, "fokabotMessage", k=key, to="#announce", msg="Hello")).said == ok()
        assert (await get(v3, "fokabotMessage", k=key[1:], to="#announce", msg="Hello")).said == WRONG_KEY


@pytest.mark.parametrize(("key", "verdict"), [("x", True), (CI_KEY, False)])
@pytest.mark.gen_test
async def test_keys_are_told_apart_by_a_comparison_in_constant_time_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, key: str, verdict: bool
) -> None:
    compared: list[int] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(one) - len(other))
        return verdict

    monkeypatch.setattr(hmac, "compare_digest", compare)

    answer = await get(world.v3, "fokabotMessage", k=key, to="#announce", msg="Hello")

    assert answer.said == (ok() if verdict else WRONG_KEY)
    assert compared == [0]  # of unequal lengths, the time would tell the length


@pytest.fixture
def talkative() -> Iterator[None]:
    """All loggers tell everything."""
    loggers = [logging.getLogger(name) for name in ("", "handlers.access", "tornado")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.gen_test
async def test_the_key_is_in_no_line_of_the_log_and_in_no_event(
    services: Services, log: EventLog, database: str, talkative: None, caplog: pytest.LogCaptureFixture
) -> None:
    key = "averysecretkey"
    async with changed(services, ci_key=key) as v3:
        with capture_logs() as logged:
            answers = [
                await get(v3, "fokabotMessage", k=key, to="#announce", msg="Hello"),
                await get(v3, "fokabotMessage", k=f"{key}x", to="#announce", msg="Hello"),
                await get(v3, "fokabotMessage", f"k={key}&to=%FF&msg=x"),
                await get(v3, "fokabotMessage", k=key, to="#nowhere", msg="Hello"),
                await get(v3, "nothingThere", k=key),
                await v3.ask(f"/api/v1/ciTrigger?k={key}", b"", method="POST"),
                await get(v3, "ciTrigger", k=key),
            ]
            with without_table(database, "messages"):
                answers.append(await get(v3, "fokabotMessage", k=key, to="#announce", msg="Hello"))

    assert [answer.status for answer in answers] == [200, 400, 400, 404, 404, 405, 200, 500]
    lines = [line for line in logged if line["event"] == "answered"]
    assert [line["path"] for line in lines[:2]] == ["/api/v1/fokabotMessage"] * 2
    assert len(lines) == len(answers)
    told = f"{logged} {caplog.text} {[answer.body for answer in answers]}"
    assert key not in told
    assert key not in str([(event.data, event.metadata) for event in await log.read()])


def test_a_real_server_at_its_most_talkative_does_not_tell_its_key(start_server: Callable[..., Server]) -> None:
    server = start_server(ci_key="averysecretkey", log_level="debug")
    with server.client() as client:
        asked = [
            client.ask("GET", f"/api/v1/{path}")
            for path in (
                "fokabotMessage?k=averysecretkey&to=%23announce&msg=Hello",
                "fokabotMessage?k=averysecretkeyX&to=%23announce&msg=Hello",
                "isOnline/?id=999&k=averysecretkey",
                "nothing?k=averysecretkey",
            )
        ]
        until_true(lambda: len(server.logged("answered")) == len(asked), "all requests are logged")

    assert [answer.status for answer in asked] == [200, 400, 200, 404]
    assert "averysecretkey" not in server.output


# --- fokabotMessage --------------------------------------------------------------------------------------------------


async def fokabot_says(world: World, to: str, text: str) -> Answer:
    return await get(world.v3, "fokabotMessage", k=CI_KEY, to=to, msg=text)


@pytest.mark.gen_test
async def test_fokabot_writes_to_a_channel_that_it_is_not_in(world: World) -> None:
    ann = await world.person()
    channel = await ann.makes(fresh("Private Den "))

    answers = [await fokabot_says(world, f"#{name}", "Hello") for name in (channel, channel.lower().replace(" ", "_"))]

    assert [answer.said for answer in answers] == [ok()] * 2
    read = await ann.reads(channel)
    assert [(message["sender"], message["message"]) for message in read] == [("FokaBot", "Hello")] * 2
    sent = await world.log.event_at(read[0]["message_id"])
    assert sent is not None
    assert answers[0].request_id in sent.metadata.decode()


@pytest.mark.gen_test
async def test_fokabot_writes_announcements(world: World) -> None:
    ann = await world.person()
    text = fresh("News ")

    assert (await fokabot_says(world, "#announce", text)).said == ok()

    newest = await ann.does("getmessagesforeveryone", count=1)
    assert texts(newest.body["messages"]) == [text]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (quote("Grüße, 世界 👋🏽"), "Grüße, 世界 👋🏽"),
        ("two+words%20and%2Bplus", "two words and+plus"),
        ("%20%0A%09%01%7F", " \n\t\x01\x7f"),
        ("100%zz%", "100%zz%"),
        ("a%26b%3Dc%3Bd", "a&b=c;d"),
        ("x" * 4000, "x" * 4000),
        (quote("é" * 4000), "é" * 4000),
    ],
)
@pytest.mark.gen_test
async def test_the_text_is_kept_as_it_is(world: World, sent: str, kept: str) -> None:
    ann = await world.person()
    channel = await ann.makes()

    answer = await get(world.v3, "fokabotMessage", f"k={quote(CI_KEY)}&to=%23{channel}&msg={sent}")

    assert answer.said == ok()
    assert texts(await ann.reads(channel)) == [kept]


@given(text=st.text())
def test_any_unicode_is_read_as_it_was_meant(text: str) -> None:
    call = Call({"msg": [text.encode()]}, cast(Services, None), "test", "127.0.0.1")

    if "\0" in text:
        with pytest.raises(Malformed):
            call.text("msg")
    else:
        assert call.text("msg") == (text or None)


@given(value=st.binary() | st.from_regex(rb"\A[+-]?[0-9]{1,40}\Z"))
def test_any_bytes_are_an_id_that_can_be_or_none_or_missing(value: bytes) -> None:
    call = Call({"id": [value]}, cast(Services, None), "test", "127.0.0.1")

    if re.fullmatch(rb"[+-]?[0-9]+", value):
        number = int(value)
        assert call.required_id("id") == (number if 0 < number < 2**63 else None)
    else:
        with pytest.raises(MissingArguments):
            call.required_id("id")


@pytest.mark.gen_test
async def test_a_text_that_is_not_percent_encoded_is_taken_as_the_utf_8_that_it_is(world: World) -> None:
    ann = await world.person()
    channel = await ann.makes()
    wire = Wire(world.port)

    answer = await wire.ask(
        request(f"/api/v1/fokabotMessage?k={quote(CI_KEY)}&to=%23{channel}&msg=", b"", method="GET").replace(
            b"msg=", "msg=Grüße".encode()
        )
    )
    wire.close()

    assert answer.said == ok()
    assert texts(await ann.reads(channel)) == ["Grüße"]


@pytest.mark.gen_test
async def test_fokabot_writes_to_somebody_who_is_online(world: World) -> None:
    ann = await world.v3.person(fresh("Some Body "))

    async with online(world, ann):
        answer = await fokabot_says(world, ann.username.lower().replace(" ", "_"), "psst 🤫")

    assert answer.said == ok()
    [direct] = await ann.dms()
    assert (direct["sender"], direct["recipient"], direct["message"]) == ("FokaBot", ann.username, "psst 🤫")


@pytest.mark.gen_test
async def test_somebody_who_is_offline_gets_nothing(world: World) -> None:
    ann = await world.person()
    async with online(world, ann):
        pass
    before = await world.log.head()

    answer = await fokabot_says(world, ann.username, "psst")

    assert answer.said == OFFLINE
    assert await world.log.head() == before


@pytest.mark.gen_test
async def test_fokabot_is_online_for_itself(world: World) -> None:
    before = await world.log.head()

    assert (await fokabot_says(world, "FokaBot", "psst")).said == ok()

    [sent] = map(decode, await world.events_after(before))
    assert isinstance(sent, DirectMessageSent)
    assert (sent.sender_id, sent.recipient_id, sent.text) == (FOKABOT, FOKABOT, "psst")


@pytest.mark.parametrize(
    ("to", "said"),
    [("#nowhere", NO_CHANNEL), ("#", NO_CHANNEL), ("nobody", NO_USER), ("announce", NO_USER), (" ", NO_USER)],
)
@pytest.mark.gen_test
async def test_to_whom_there_is_not_is_404(world: World, to: str, said: tuple[int, dict[str, Any]]) -> None:
    before = await world.log.head()

    assert (await fokabot_says(world, to, "Hello")).said == said
    assert await world.log.head() == before


@pytest.mark.parametrize("query", ["", "to=%23announce", "msg=Hello", "to=&msg=Hello", "to=%23nowhere&msg=", "to&msg"])
@pytest.mark.gen_test
async def test_a_missing_or_empty_argument_is_told(world: World, query: str) -> None:
    assert (await get(world.v3, "fokabotMessage", f"k={quote(CI_KEY)}&{query}")).said == MISSING


TOO_LONG = "msg: must be 1 to 4,000 characters long"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (f"to=%23nowhere&msg={'x' * 4001}", TOO_LONG),
        (f"to=%23announce&msg={quote('é' * 4001)}", TOO_LONG),
        ("to=%23announce&msg=caf%E9", "msg: is not valid UTF-8"),
        ("to=%23announce&msg=%ED%A0%BD", "msg: is not valid UTF-8"),
        ("to=%23announce&msg=a%00b", "msg: must not hold a NUL character"),
        ("to=%23%FF&msg=Hello", "to: is not valid UTF-8"),
        ("to=%00&msg=Hello", "to: must not hold a NUL character"),
    ],
)
@pytest.mark.gen_test
async def test_what_cannot_be_an_argument_is_400_and_told(world: World, query: str, message: str) -> None:
    before = await world.log.head()

    answer = await get(world.v3, "fokabotMessage", f"k={quote(CI_KEY)}&{query}")

    assert answer.said == (400, {"status": 400, "message": message})
    assert await world.log.head() == before


@pytest.mark.parametrize(
    ("query", "problem"), [("%FF", "is not valid UTF-8"), ("%00", "must not hold a NUL character")]
)
@pytest.mark.gen_test
async def test_a_username_that_cannot_be_is_400_and_told(world: World, query: str, problem: str) -> None:
    assert (await get(world.v3, "isOnline", f"u={query}")).said == (400, {"status": 400, "message": f"u: {problem}"})


# --- verifiedStatus --------------------------------------------------------------------------------------------------


async def status_of(world: World, account: Account) -> object:
    answer = await get(world.v3, "verifiedStatus", u=str(account.account_id))
    assert answer.status == 200
    return answer.body["result"]


@pytest.mark.gen_test
async def test_an_account_is_verified_by_its_first_connection_for_ever(world: World) -> None:
    ann = await world.person()
    account = await account_of(world, ann)
    before = await status_of(world, account)

    async with online(world, ann):
        meanwhile = await status_of(world, account)
    after = await status_of(world, account)

    assert (before, meanwhile, after) == (-1, 1, 1)


@pytest.mark.gen_test
async def test_a_second_account_of_a_device_is_flagged(world: World) -> None:
    ann, bob, device = await world.person(), await world.person(), fresh("device")

    async with online(world, ann, device) as first, online(world, bob, device) as second:
        pass

    assert (await status_of(world, first), await status_of(world, second)) == (1, 0)


@pytest.mark.parametrize("user", ["1", "0", "-5", "999999", "9" * 30])
@pytest.mark.gen_test
async def test_who_does_not_exist_is_not_verified(world: World, user: str) -> None:
    assert (await get(world.v3, "verifiedStatus", u=user)).said == ok(-1)


@pytest.mark.parametrize("query", ["", "u=", "u=FokaBot", "u=1.0", "u=%FF", "u=%00", "id=1000"])
@pytest.mark.gen_test
async def test_verified_status_needs_a_whole_id(world: World, query: str) -> None:
    assert (await get(world.v3, "verifiedStatus", query)).said == MISSING


# --- ciTrigger -------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_ci_trigger_records_that_a_restart_is_asked_for(world: World) -> None:
    before = await world.log.head()

    answer = await get(world.v3, "ciTrigger", k=CI_KEY)

    assert answer.said == ok()
    [requested] = map(decode, await world.events_after(before))
    assert isinstance(requested, RestartRequested)
    assert 1 <= requested.reconnect_in <= 60


@pytest.mark.gen_test
async def test_a_restart_that_is_under_way_is_not_asked_for_again(world: World) -> None:
    before = await world.log.head()

    async with changed(world.services, restarting=lambda: True) as v3:
        answers = [await get(v3, "ciTrigger", k=key) for key in (CI_KEY, "wrongkey")]

    assert [answer.said for answer in answers] == [ok(), WRONG_KEY]
    assert await world.log.head() == before
