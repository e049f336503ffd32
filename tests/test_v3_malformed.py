"""V3 against everything that is no proper request: a 4xx with exactly a message, and nothing else happens.

Every refusal here is held to the same things: the answer comes in good time, its body is {"message": <a text>} and
names the field at fault where there is one, nothing was appended to the log, and a good request is served afterwards.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import fields
from tornado.ioloop import IOLoop

from handlers.http import MAX_BODY, MAX_DISCARDED
from handlers.v3 import ENDPOINTS
from tests.fronts import PARSER
from tests.v3client import (
    Answer,
    Person,
    Wire,
    World,
    credentials,
    fresh,
    own_loop,
    own_world,
    parsed,
    registered,
    request,
    texts,
)

T = TypeVar("T")

KiB = 1024
DEEP = 10_000
TOO_LARGE = (413, {"message": "The body is larger than 64 KiB!"})
NOT_FOUND = (404, {"message": "Not found!"})
NOT_ALLOWED = (405, {"message": "Method not allowed!"})
NUMBERS = ("count", "message_id")

EACH_FIELD = [(endpoint, field.name) for endpoint, (kind, _) in ENDPOINTS.items() for field in fields(kind)]
REQUIRED = {
    (endpoint, field.name) for endpoint, (kind, _) in ENDPOINTS.items() for field in fields(kind) if field.required
}

each_endpoint = pytest.mark.parametrize("endpoint", list(ENDPOINTS))
each_field = pytest.mark.parametrize(("endpoint", "field"), EACH_FIELD)
each_text = pytest.mark.parametrize(("endpoint", "field"), [pair for pair in EACH_FIELD if pair[1] not in NUMBERS])
each_number = pytest.mark.parametrize(("endpoint", "field"), [pair for pair in EACH_FIELD if pair[1] in NUMBERS])
fuzzed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Server:
    """A server, Ann whose requests it serves, and a good body for each endpoint (by her where it needs a token)."""

    def __init__(self, world: World, ann: Person, good: dict[str, dict[str, Any]]) -> None:
        self.world = world
        self.ann = ann
        self.good = good
        self.wire = Wire(world.port)

    def good_json(self, endpoint: str) -> bytes:
        """A body that the endpoint would serve."""
        return json.dumps(self.good[endpoint]).encode()

    def with_raw(self, endpoint: str, field: str, raw: bytes) -> bytes:
        """A body in which nothing but the value of this field is wrong: it is these bytes."""
        marker = "the value goes here"
        body = json.dumps(self.good[endpoint] | {field: marker}).encode()
        return body.replace(json.dumps(marker).encode(), raw)

    async def refuses(self, *requests: bytes) -> list[Answer]:
        """Sends requests that must be refused, each held to what the module's docstring says; the answers."""
        before = await self.world.log.head()
        answers = [await self.wire.ask(raw) for raw in requests]
        for answer in answers:
            assert 400 <= answer.status < 500, answer
            assert list(answer.body) == ["message"], answer
            assert isinstance(answer.body["message"], str), answer
            assert answer.body["message"], answer
        assert await self.world.log.head() == before, f"a refused request was recorded: {answers}"
        assert (await self.ann.does("getmessagesforeveryone", count=1)).status == 200
        return answers

    async def refuses_for(self, field: str, endpoint: str, *bodies: bytes) -> None:
        """Posts bodies that must be refused for the fault of a field (or of the `body`)."""
        for answer in await self.refuses(*(request(f"/api/v3/{endpoint}", body) for body in bodies)):
            assert answer.status == 400, answer
            assert answer.body["message"].startswith(f"{field}: "), answer
            assert len(answer.body["message"]) > len(f"{field}: "), answer


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def world(io_loop: IOLoop, cluster: str) -> Iterator[World]:
    yield from own_world(io_loop, cluster)


@pytest.fixture(scope="module")
def server(io_loop: IOLoop, world: World) -> Iterator[Server]:
    async def make() -> Server:
        ann = await world.person()
        channel = await ann.makes()
        password = await registered(world)
        token = {"token": ann.token}
        newest = token | {"count": 5}
        text = token | {"message": "hello"}
        good: dict[str, dict[str, Any]] = {
            "register": credentials(),
            "login": password,
            "generatetoken": password,
            "gettoken": password,
            "senddcmsgwithtoken": text,
            "getmessagesforeveryone": newest,
            "getmysentmessages": newest,
            "readmessagesfromchannel": newest | {"name": channel},
            "deletemessage": token | {"message_id": await ann.sends(channel, "to be deleted")},
            "makechannel": token | {"name": fresh("den")},
            "addusertochannel": token | {"name": channel, "username": ann.username},
            "sendmessage": text | {"channel": channel},
            "getchannels": token,
            "getdms": newest,
            "senddm": text | {"username": ann.username},
            "senddcmsg": text | {"channel": channel},
            "linkdiscord": token,
        }
        return Server(world, ann, good)

    made = run(io_loop, make)
    yield made
    made.wire.close()


def run(io_loop: IOLoop, call: Callable[[], Awaitable[T]]) -> T:
    result: T = io_loop.run_sync(call, timeout=60)
    return result


# --- Bodies that are anything ----------------------------------------------------------------------------------------

# Too short for a password and for a token: so whatever has the right shape by chance is still refused.
short_texts = st.text(st.characters(codec=None), max_size=7)
numbers = st.integers() | st.floats() | st.just(10**400) | st.just(2**63)
values = st.recursive(
    st.none() | st.booleans() | numbers | short_texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(short_texts, children, max_size=3),
    max_leaves=8,
)


@each_endpoint
@given(body=st.binary(max_size=200))
@example(body=b"\xff\xfe")
@fuzzed
def test_arbitrary_bytes_are_refused(endpoint: str, body: bytes, server: Server, io_loop: IOLoop) -> None:
    run(io_loop, lambda: server.refuses(request(f"/api/v3/{endpoint}", body)))


@each_endpoint
@given(value=values)
@fuzzed
def test_arbitrary_json_is_refused(endpoint: str, value: object, server: Server, io_loop: IOLoop) -> None:
    run(io_loop, lambda: server.refuses(request(f"/api/v3/{endpoint}", json.dumps(value).encode())))


@each_endpoint
@given(data=st.data())
@fuzzed
def test_the_right_keys_with_arbitrary_values_are_refused(
    endpoint: str, data: st.DataObject, server: Server, io_loop: IOLoop
) -> None:
    names = [field.name for field in fields(ENDPOINTS[endpoint][0])]
    body = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(names, values)))

    run(io_loop, lambda: server.refuses(request(f"/api/v3/{endpoint}", json.dumps(body).encode())))


@each_endpoint
@given(data=st.data())
@fuzzed
def test_a_body_with_some_bytes_changed_is_refused(
    endpoint: str, data: st.DataObject, server: Server, io_loop: IOLoop
) -> None:
    # Good but for what it is refused for, should the changes leave it what it is.
    body = bytearray(json.dumps(server.good[endpoint] | {"password": "weak", "token": "none"}).encode())
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=5)):
        body[place] = data.draw(st.integers(0, 255))

    run(io_loop, lambda: server.refuses(request(f"/api/v3/{endpoint}", bytes(body))))


NO_OBJECTS = [
    pytest.param(b"", id="empty"),
    pytest.param(b" \n", id="blank"),
    pytest.param(b"{", id="cut off"),
    pytest.param(b"not json", id="not JSON"),
    pytest.param(b"{'token': 'x'}", id="single quotes"),
    pytest.param(b'{"token": "x",}', id="trailing comma"),
    pytest.param(b'\xef\xbb\xbf{"token": "x"}', id="byte order mark"),
    pytest.param('{"token": "x"}'.encode("utf-16"), id="UTF-16"),
    pytest.param(b'{"token": NaN}', id="NaN"),
    pytest.param(b"token=x&count=5", id="a form"),
    pytest.param(b"null", id="null"),
    pytest.param(b"5", id="a number"),
    pytest.param(b'"{}"', id="a string"),
    pytest.param(b"[{}]", id="an array"),
    pytest.param(b"[" * DEEP + b"]" * DEEP, id="deep arrays"),
    pytest.param(b'{"x":' * DEEP + b"1" + b"}" * DEEP, id="deep objects"),
    pytest.param(b'{"x":' + b"[" * DEEP, id="deep and cut off"),
]


@pytest.mark.parametrize("body", NO_OBJECTS)
@pytest.mark.gen_test
async def test_what_is_no_json_object_is_the_bodys_fault(body: bytes, server: Server) -> None:
    for endpoint in ENDPOINTS:
        await server.refuses_for("body", endpoint, body)


@each_endpoint
@pytest.mark.gen_test
async def test_anything_behind_the_object_is_the_bodys_fault(endpoint: str, server: Server) -> None:
    body = server.good_json(endpoint)

    more = (b"x", b"{}", body, b"\0", b"\xff", b"]")
    await server.refuses_for("body", endpoint, *(body + b" " + behind for behind in more))


# --- Bodies with one thing wrong -------------------------------------------------------------------------------------

DEEP_VALUES = [b"[" * DEEP + b"]" * DEEP, b'{"x":' * DEEP + b"1" + b"}" * DEEP]
NO_TEXTS = [
    b"null",
    b"true",
    b"false",
    b"0",
    b"-1",
    b"1.5",
    b"1e400",
    b"9" * 5000,
    b"[]",
    b"{}",
    b'["x"]',
    *DEEP_VALUES,
]
NO_NUMBERS = [
    *(b"null", b"true", b"false", b"1.0", b"1e3", b"1e400", b"-1e400", b"-" + b"9" * 5000, b"[]", b"{}", b"[1]"),
    *(b'""', b'"x"', b'" 1"', b'"1 "', b'"+1"', b'"-1"', b'"1.0"', b'"1e3"', b'"0x1"', b'"\xd9\xa1"', b'"1\\n"'),
    *(b"0", b"-1", b'"0"', b'"000"', b"-9223372036854775809", *DEEP_VALUES),
]


@each_text
@pytest.mark.gen_test
async def test_what_is_no_text_is_refused_and_its_field_named(endpoint: str, field: str, server: Server) -> None:
    await server.refuses_for(field, endpoint, *(server.with_raw(endpoint, field, raw) for raw in NO_TEXTS))


@each_number
@pytest.mark.gen_test
async def test_what_is_no_whole_number_is_refused_and_its_field_named(
    endpoint: str, field: str, server: Server
) -> None:
    await server.refuses_for(field, endpoint, *(server.with_raw(endpoint, field, raw) for raw in NO_NUMBERS))


@pytest.mark.parametrize(
    "raw", [b"9223372036854775808", b'"9223372036854775808"', b"9" * 1000, b'"%s"' % (b"9" * 50_000)]
)
@pytest.mark.parametrize("endpoint", ["readmessagesfromchannel", "deletemessage"])
@pytest.mark.gen_test
async def test_a_message_id_beyond_all_positions_is_refused(endpoint: str, raw: bytes, server: Server) -> None:
    await server.refuses_for("message_id", endpoint, server.with_raw(endpoint, "message_id", raw))


@pytest.mark.parametrize(
    ("endpoint", "field"),
    # A channel is read by name and count; that they may be left out is for its other use, with a message_id.
    [*sorted(REQUIRED), ("readmessagesfromchannel", "name"), ("readmessagesfromchannel", "count")],
)
@pytest.mark.gen_test
async def test_a_field_that_is_missing_is_named(endpoint: str, field: str, server: Server) -> None:
    without = {name: value for name, value in server.good[endpoint].items() if name != field}

    await server.refuses_for(field, endpoint, json.dumps(without).encode())


@each_text
@pytest.mark.gen_test
async def test_a_nul_is_refused_and_its_field_named(endpoint: str, field: str, server: Server) -> None:
    escaped = (b'"\\u0000"', b'"hel\\u0000lo"', b'"\\\\\\u0000"')

    await server.refuses_for(field, endpoint, *(server.with_raw(endpoint, field, raw) for raw in escaped))
    # Not escaped it is no JSON at all.
    await server.refuses_for("body", endpoint, server.with_raw(endpoint, field, b'"hel\0lo"'))


@pytest.mark.gen_test
async def test_a_text_that_only_speaks_of_a_nul_is_kept(server: Server) -> None:
    channel = await server.ann.makes()
    await server.ann.sends(channel, "\\u0000")

    assert texts(await server.ann.reads(channel)) == ["\\u0000"]


LONE_SURROGATES = [
    *(b'"\\ud800"', b'"\\udbff"', b'"\\udc00"', b'"\\udfff"', b'"a\\ud83dz"', b'"\\ud83d\\n"', b'"\\ud83d\\ud83d"'),
    *(b'"\\ude00\\ud83d"', b'"\\uD800\\u0041"', b'"\\ud83d\\\\ude00"', b'"\\ud83d \\ude00"'),
]
# Surrogates as CESU-8 and others write them; and what UTF-8 forbids besides.
NO_UTF8 = [
    *(b'"\xed\xa0\x80"', b'"\xed\xbf\xbf"', b'"\xed\xa0\xbd\xed\xb8\x80"'),
    *(b'"\xc0\x80"', b'"\xff"', b'"\x80"', b'"\xc3"', b'"\xe2\x82"', b'"\xf4\x90\x80\x80"', b'"caf\xe9"'),
]


@each_field
@pytest.mark.gen_test
async def test_a_lone_surrogate_is_refused_and_its_field_named(endpoint: str, field: str, server: Server) -> None:
    await server.refuses_for(field, endpoint, *(server.with_raw(endpoint, field, raw) for raw in LONE_SURROGATES))


@each_endpoint
@pytest.mark.gen_test
async def test_a_lone_surrogate_is_refused_where_nobody_looks_too(endpoint: str, server: Server) -> None:
    body = server.good_json(endpoint)[:-1]
    elsewhere = (b'"ignored": %s', b'"ignored": [%s]', b"%s: 1", b"%s: %s")

    for raw in LONE_SURROGATES:
        await server.refuses_for(
            "body", endpoint, *(body + b", " + more.replace(b"%s", raw) + b"}" for more in elsewhere)
        )


@each_field
@pytest.mark.gen_test
async def test_what_is_not_utf8_is_the_bodys_fault(endpoint: str, field: str, server: Server) -> None:
    await server.refuses_for("body", endpoint, *(server.with_raw(endpoint, field, raw) for raw in NO_UTF8))


@each_endpoint
@pytest.mark.gen_test
async def test_what_is_not_utf8_is_refused_where_nobody_looks_too(endpoint: str, server: Server) -> None:
    body = server.good_json(endpoint)[:-1]

    await server.refuses_for("body", endpoint, *(body + b', "ignored": ' + raw + b"}" for raw in NO_UTF8))
    await server.refuses_for("body", endpoint, *(body + b", " + raw + b": 1}" for raw in NO_UTF8))


@each_endpoint
@pytest.mark.gen_test
async def test_a_key_twice_must_have_the_right_type_both_times(endpoint: str, server: Server) -> None:
    body = server.good_json(endpoint)
    first = fields(ENDPOINTS[endpoint][0])[0].name

    twice = (body[:-1] + b', "%s": 5}' % first.encode(), b'{"%s": 5, ' % first.encode() + body[1:])
    await server.refuses_for(first, endpoint, *twice)


@pytest.mark.gen_test
async def test_of_a_key_twice_the_last_one_counts(server: Server) -> None:
    channel = await server.ann.makes()
    first = {"token": "no token", "channel": channel, "message": "first"}
    last = {"token": server.ann.token, "message": "last"}

    answer = await server.wire.ask(
        request("/api/v3/sendmessage", f"{json.dumps(first)[:-1]}, {json.dumps(last)[1:]}".encode())
    )

    assert answer.status == 200
    assert texts(await server.ann.reads(channel)) == ["last"]


# --- The size of a body ----------------------------------------------------------------------------------------------


def padded(body: bytes, size: int) -> bytes:
    """The same JSON in so many bytes."""
    return body + b" " * (size - len(body))


def chunked(path: str, body: bytes, size: int = 16 * KiB, end: bytes = b"0\r\n\r\n") -> bytes:
    """A request that does not tell how long it is, in chunks of this size."""
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


@pytest.mark.gen_test
async def test_a_body_of_64_kib_is_served(server: Server) -> None:
    path = "/api/v3/getmessagesforeveryone"
    body = padded(server.good_json("getmessagesforeveryone"), MAX_BODY)

    answers = [await server.wire.ask(raw) for raw in (request(path, body), chunked(path, body))]

    assert [answer.status for answer in answers] == [200, 200]


@each_endpoint
@pytest.mark.gen_test
async def test_a_body_above_64_kib_is_413(endpoint: str, server: Server) -> None:
    body = padded(server.good_json(endpoint), MAX_BODY + 1)
    path = f"/api/v3/{endpoint}"

    answers = await server.refuses(request(path, body), chunked(path, body))

    assert [answer.said for answer in answers] == [TOO_LARGE] * 2


@pytest.mark.gen_test
async def test_a_body_of_1_mib_is_read_to_its_end_and_the_connection_kept(server: Server) -> None:
    body = padded(server.good_json("sendmessage"), MAX_DISCARDED)
    path = "/api/v3/sendmessage"

    answers = await server.refuses(request(path, body), chunked(path, body))

    assert [answer.said for answer in answers] == [TOO_LARGE] * 2
    assert ["Connection" in answer.headers for answer in answers] == [False, False]


@pytest.mark.parametrize("length", [b"1048577", b"99999999999999999999"])
@pytest.mark.gen_test
async def test_a_body_that_says_it_is_larger_is_413_before_it_comes(length: bytes, server: Server) -> None:
    head = b"POST /api/v3/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: %s\r\n\r\n" % length

    [answer] = await server.refuses(head)

    assert answer.said == TOO_LARGE
    assert answer.headers["Connection"] == "close"


@pytest.mark.parametrize("size", [16 * KiB, MAX_DISCARDED * 2])
@pytest.mark.gen_test
async def test_a_body_that_turns_out_larger_is_413_before_it_ends(size: int, server: Server) -> None:
    [answer] = await server.refuses(chunked("/api/v3/login", b" " * (MAX_DISCARDED + 1), size, end=b""))

    assert answer.said == TOO_LARGE
    assert answer.headers["Connection"] == "close"


# --- Methods and paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.gen_test
async def test_any_other_method_is_405_and_told_which_is_right(method: str, server: Server) -> None:
    asked = [request(f"/api/v3/{endpoint}/", server.good_json(endpoint), method=method) for endpoint in ENDPOINTS]

    answers = await server.refuses(*asked)

    assert [answer.said for answer in answers] == [NOT_ALLOWED] * len(ENDPOINTS)
    assert {answer.headers["Allow"] for answer in answers} == {"POST"}


@pytest.mark.gen_test
async def test_head_is_405_without_a_body(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.world.port)

    writer.write(b"HEAD /api/v3/login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: POST\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/api",
            "/api/v3",
            "/api/v3/",
            "/api/v3/nothing",
            "/api/v3/login/x",
            "/api/v3/login//",
            "/api/v3//login",
        ),
        *("/api/v3/LOGIN", "/api/v4/login", "/api/v3/login%00", "/api/v3/login%0a", "/api/v3/%ff", "/api/v3/loginx"),
        *("/api/v3/../v3/login", "*", "/api/v3/login/.", "/\u00ff"),
    ],
)
@pytest.mark.gen_test
async def test_an_unknown_path_is_404(path: str, method: str, server: Server) -> None:
    [answer] = await server.refuses(request(path, b"{}", method=method))

    assert answer.said == NOT_FOUND


@pytest.mark.gen_test
async def test_an_unknown_path_is_404_for_an_unknown_method_too(server: Server) -> None:
    [answer] = await server.refuses(request("/nowhere", b"{}", method="BREW"))

    assert answer.said == NOT_FOUND


# --- What is hardly HTTP ---------------------------------------------------------------------------------------------


LOGIN = b"POST /api/v3/login HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        pytest.param(b"garbage\r\n\r\n", 400, id="no request line"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, id="TLS"),
        pytest.param(b"POST /api/v3/login HTTP/9.9\r\nHost: localhost\r\n\r\n", 505, id="unknown version"),
        pytest.param(b"POST /api/v3/login HTTP/1.1\r\n\r\n", 400, id="no host"),
        pytest.param(LOGIN + b"A: b\0c\r\n\r\n", 400, id="a NUL in a header"),
        pytest.param(LOGIN + b"Content-Length: two\r\n\r\n{}", 400, id="a length that is no number"),
        pytest.param(LOGIN + b"Content-Length: -1\r\n\r\n{}", 400, id="a negative length"),
        pytest.param(LOGIN + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, id="two lengths"),
        pytest.param(
            LOGIN + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="a length and chunks"
        ),
        pytest.param(LOGIN + b"Transfer-Encoding: gzip\r\n\r\n{}", 501, id="an unknown transfer encoding"),
        pytest.param(
            LOGIN + b"Transfer-Encoding: chunked\r\n\r\nxx\r\n{}\r\n0\r\n\r\n", 400, id="a chunk of no length"
        ),
    ],
)
@pytest.mark.gen_test
async def test_what_is_no_http_is_refused_and_harms_nobody(raw: bytes, status: int, server: Server) -> None:
    before = await server.world.log.head()

    answer = await server.wire.exchange(raw)

    # It is answered before there is a request, with Tornado's parser in no words of ours.
    if PARSER == "tornado":
        assert answer == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    else:
        refusal = parsed(answer)
        assert refusal.status == status
        assert refusal.headers["Connection"] == "close"
        assert {"Date", "X-Request-Id"} <= refusal.headers.keys()
        assert list(refusal.body) == ["message"]
    assert await server.world.log.head() == before
    assert (await server.ann.does("getmessagesforeveryone", count=1)).status == 200


@pytest.mark.gen_test
async def test_a_request_that_breaks_off_is_not_served(server: Server) -> None:
    channel = await server.ann.makes()
    before = await server.world.log.head()
    body = json.dumps({"token": server.ann.token, "channel": channel, "message": "x"}).encode()
    whole = request("/api/v3/sendmessage", body)

    for cut in (10, len(whole) - 1):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.world.port)
        writer.write(whole[:cut])
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()

    assert await server.world.log.head() == before
    assert await server.ann.reads(channel) == []


@pytest.mark.gen_test
async def test_a_connection_stays_usable_after_a_refusal(server: Server) -> None:
    path = "/api/v3/getmessagesforeveryone"
    bad, too_large = request(path, b"not json"), request(path, b" " * (MAX_BODY + 1))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.world.port)

    writer.write(bad + too_large + bad + request(path, server.good_json("getmessagesforeveryone")))

    statuses = []
    async with asyncio.timeout(10):
        for _ in range(4):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            statuses.append(int(head.split(" ")[1]))
            await reader.readexactly(int(head.partition("Content-Length: ")[2].partition("\r\n")[0]))
    writer.close()
    assert statuses == [400, 413, 400, 200]


@pytest.mark.gen_test
async def test_what_the_headers_say_of_the_body_does_not_matter(server: Server) -> None:
    path, body = "/api/v3/getmessagesforeveryone", server.good_json("getmessagesforeveryone")
    said = [
        b"Content-Type: multipart/form-data; boundary=",
        b"Content-Type: application/x-www-form-urlencoded",
        b"Content-Type: \xff\xfe",
        b"Content-Encoding: gzip",
        b"Expect: 100-continue",
        b"X-Forwarded-For: no address",
        b"Accept: text/html",
    ]

    answers = [await server.wire.ask(request(path, body, header)) for header in said]

    assert [answer.status for answer in answers] == [200] * len(said)
