"""docs/openapi.json is what V3 and Bancho are: paths, requests' fields, messages, and the shape of real answers.

The schemas are checked by a validator of the few words that the document uses; a word that it does not know fails.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
from msgspec.structs import fields
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop

from chat.bridging import Bridging
from chat.moderation import Moderation
from eventstore.transparency.checkpoints import Checkpointer
from eventstore.transparency.notes import SigningKey
from handlers import ops
from handlers.bancho import ENDPOINTS as BANCHO
from handlers.bancho import http as bancho
from handlers.bancho.http import REFUSALS as BANCHO_REFUSALS
from handlers.services import Services
from handlers.v3 import ENDPOINTS
from handlers.v3 import http as v3
from handlers.v3.answers import REFUSALS
from handlers.v3.bodies import Number
from tests.bridged import bridge_of, fresh_id
from tests.conftest import CI_KEY, OPERATOR, SECRET
from tests.v3client import PASSWORD, V3, Answer, World, fresh, own_loop, own_world, serving
from tests.v3words import NO_SUCH_TOKEN

Json = dict[str, Any]

DOCUMENT: Json = json.loads((Path(__file__).parents[1] / "docs" / "openapi.json").read_text())
# A body that has every field, and nothing right in it.
WRONG: Json = dict.fromkeys(("username", "name", "channel"), "nowhere") | {
    "password": "weak",
    "token": NO_SUCH_TOKEN,
    "message": "hello",
    "message_id": 1,
    "count": 5,
}
# Held by tests of their own (limits, outages, faults): their texts are the same everywhere.
NEEDS_A_FAULT = {(429, "Too many requests!"), (500, "Internal error!")} | {
    (503, text) for text in ("The log cannot be reached now, try again!", "Too busy now, try again!")
}


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def world(io_loop: IOLoop, cluster: str) -> Iterator[World]:
    yield from own_world(io_loop, cluster, fresh_id())


# --- The document ----------------------------------------------------------------------------------------------------


def found(value: Json) -> Json:
    """The value, or what its `$ref` points to."""
    while "$ref" in value:
        place, *path = value["$ref"].split("/")
        assert place == "#", value
        value = DOCUMENT
        for name in path:
            value = value[name]
    return value


def everything(value: object) -> Iterator[Json]:
    """Every object in the document."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from everything(part)


def operation(endpoint: str) -> Json:
    return dict(DOCUMENT["paths"][f"/api/v3/{endpoint}/"]["post"])


def bancho_operation(endpoint: str) -> Json:
    return dict(DOCUMENT["paths"][f"/api/v1/{endpoint}"]["get"])


def schema_of(content: Json) -> Json:
    """The one schema of a request or an answer, which is JSON."""
    [(kind, described)] = found(content)["content"].items()
    assert kind == "application/json"
    return dict(described["schema"])


def alternatives(schema: Json) -> list[Json]:
    return [found(one) for one in found(schema).get("oneOf", [schema])]


def messages(response: Json) -> list[str]:
    """The texts of `message` that an answer may have, as far as they are told to the letter."""
    told = [one["properties"].get("message", {}).get("const") for one in alternatives(schema_of(response))]
    return [text for text in told if text is not None]


def documented() -> set[tuple[str, int, str]]:
    """Every (endpoint, status, message) of V3."""
    return {
        (endpoint, int(status), text)
        for endpoint in ENDPOINTS
        for status, response in operation(endpoint)["responses"].items()
        for text in messages(response)
    }


# --- A validator -----------------------------------------------------------------------------------------------------

KINDS: dict[str, type] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
Fault = Callable[[Any, Any, Json], bool]
# Of each word whether a value is against it; the words say nothing of values of other types.
FAULTS: dict[str, Fault] = {
    "type": lambda wanted, value, _: type(value) is not KINDS[wanted],
    "const": lambda wanted, value, _: value != wanted,
    "pattern": lambda wanted, value, _: isinstance(value, str) and not re.search(wanted, value),
    "minLength": lambda wanted, value, _: isinstance(value, str) and len(value) < wanted,
    "maxLength": lambda wanted, value, _: isinstance(value, str) and len(value) > wanted,
    "minimum": lambda wanted, value, _: isinstance(value, int) and value < wanted,
    "maximum": lambda wanted, value, _: isinstance(value, int) and value > wanted,
    "maxItems": lambda wanted, value, _: isinstance(value, list) and len(value) > wanted,
    "items": lambda wanted, value, _: isinstance(value, list) and not all(valid(wanted, item) for item in value),
    "required": lambda wanted, value, _: isinstance(value, dict) and not value.keys() >= set(wanted),
    "properties": lambda wanted, value, _: (
        isinstance(value, dict) and not all(valid(wanted[key], value[key]) for key in wanted.keys() & value.keys())
    ),
    "additionalProperties": lambda _, value, schema: (
        isinstance(value, dict) and not value.keys() <= schema["properties"].keys()
    ),
    "oneOf": lambda wanted, value, _: [valid(one, value) for one in wanted].count(True) != 1,
    "anyOf": lambda wanted, value, _: not any(valid(one, value) for one in wanted),
}
FOR_PEOPLE = {"description", "examples", "format"}


def valid(schema: Json, value: object) -> bool:
    """Whether the value is what the schema says."""
    schema = found(schema)
    return not any(FAULTS[word](wanted, value, schema) for word, wanted in schema.items() if word not in FOR_PEOPLE)


def matches(response: Json, answer: Answer) -> bool:
    """Whether the answer has the body and the headers that its description tells."""
    return valid(schema_of(response), answer.body) and all(
        name in answer.headers for name, header in found(response)["headers"].items() if found(header).get("required")
    )


# --- The document by itself ------------------------------------------------------------------------------------------


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    references = {value["$ref"] for value in everything(DOCUMENT) if "$ref" in value}
    for reference in references:
        assert found({"$ref": reference})

    components = {f"#/components/{kind}/{name}" for kind, named in DOCUMENT["components"].items() for name in named}
    # What is not asked for has no operation to stand in.
    names = {"NotFound", "MethodNotAllowed", "BanchoMethodNotAllowed"}
    assert components - references == {f"#/components/responses/{name}" for name in names}


def test_every_answer_is_described_with_its_request_id() -> None:
    responses = [
        response for value in everything(DOCUMENT["paths"]) for response in value.get("responses", {}).values()
    ]

    assert responses
    for response in (*responses, *DOCUMENT["components"]["responses"].values()):
        assert found(response)["description"]
        assert found(response)["headers"]["X-Request-Id"] == {"$ref": "#/components/headers/RequestId"}


def test_every_429_and_503_but_readyz_tells_when_to_try_again() -> None:
    operations = {**{name: operation(name) for name in ENDPOINTS}, **{name: bancho_operation(name) for name in BANCHO}}
    for endpoint, described in operations.items():
        for status, response in described["responses"].items():
            assert ("Retry-After" in found(response)["headers"]) == (status in ("429", "503")), (endpoint, status)


def test_every_example_is_one() -> None:
    schemas = [(value, example) for value in everything(DOCUMENT) for example in value.get("examples", [])]
    contents = [(value["schema"], value["example"]) for value in everything(DOCUMENT) if "example" in value]

    assert len(schemas) > 10
    assert contents
    for schema, example in (*schemas, *contents):
        assert valid(schema, example), example


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "#/components/schemas/InvalidToken"}, {"message": "Invalid token"}),
        ({"$ref": "#/components/schemas/InvalidToken"}, {"message": "Invalid token!", "more": 1}),
        ({"$ref": "#/components/schemas/InvalidToken"}, {}),
        ({"$ref": "#/components/schemas/InvalidToken"}, []),
        ({"$ref": "#/components/schemas/Channel"}, {"channel_name": "den", "channel_id": "5"}),
        ({"$ref": "#/components/schemas/Channel"}, {"channel_name": "den", "channel_id": True}),
        ({"$ref": "#/components/schemas/Timestamp"}, "2026-01-31T12:00:00Z"),
        ({"$ref": "#/components/schemas/Count"}, 0),
        ({"$ref": "#/components/schemas/Count"}, "-1"),
        ({"$ref": "#/components/schemas/Text"}, ""),
        ({"type": "array", "items": {"type": "string"}}, ["a", 1]),
    ],
)
def test_the_validator_finds_faults(schema: Json, value: object) -> None:
    assert not valid(schema, value)


# --- Against the code ------------------------------------------------------------------------------------------------


def test_it_describes_every_path_and_no_other() -> None:
    no_services = cast(Services, None)
    served = [route.regex for route in (*v3.routes(no_services), *bancho.routes(no_services), *ops.routes(no_services))]

    assert [len([path for path in DOCUMENT["paths"] if route.match(path)]) for route in served] == [1] * len(served)
    assert len(DOCUMENT["paths"]) == len(served)


def test_v3_is_asked_by_post_and_named_by_its_paths() -> None:
    for endpoint in ENDPOINTS:
        assert list(DOCUMENT["paths"][f"/api/v3/{endpoint}/"]) == ["post"]
        assert operation(endpoint)["operationId"] == endpoint


@pytest.mark.parametrize("endpoint", list(ENDPOINTS))
def test_a_requests_fields_are_those_of_its_struct(endpoint: str) -> None:
    kind, _ = ENDPOINTS[endpoint]
    body = operation(endpoint)["requestBody"]
    schema = found(schema_of(body))

    assert body["required"] is True
    assert set(schema["properties"]) == {field.name for field in fields(kind)}
    assert set(schema["required"]) == {field.name for field in fields(kind) if field.required}
    for field in fields(kind):
        described = found(schema["properties"][field.name])
        takes = {one["type"] for one in alternatives(described)}
        assert takes == ({"integer", "string"} if field.name in ("count", "message_id") else {"string"}), field


def test_fields_that_are_numbers_are_those_of_the_structs() -> None:
    hints = {field.name: field.type for kind, _ in ENDPOINTS.values() for field in fields(kind)}
    numbers = {name for name, hint in hints.items() if int in getattr(hint, "__args__", ())}

    assert set(getattr(Number, "__args__", ())) == {int, str}
    assert numbers == {"count", "message_id"}


def test_every_refusal_stands_in_it_under_its_status() -> None:
    told = [
        (int(status), alternative)
        for endpoint in ENDPOINTS
        for status, response in operation(endpoint)["responses"].items()
        for alternative in alternatives(schema_of(response))
    ]

    for status, words in REFUSALS.values():
        said = {"message": words.format(seconds=60)}
        assert any(status == code and valid(schema, said) for code, schema in told), said


def test_an_idempotency_key_is_taken_where_messages_are_sent() -> None:
    taking = {endpoint for endpoint in ENDPOINTS if "parameters" in operation(endpoint)}

    assert taking == {"sendmessage", "senddm", "senddcmsg", "senddcmsgwithtoken"}


# --- Against real answers --------------------------------------------------------------------------------------------


class Conversation:
    """Calls that bring about every answer of V3 that needs no fault; `heard` is what was answered.

    `without_discord` is another server of the same world.
    """

    def __init__(self, world: World, without_discord: V3) -> None:
        self._world = world
        self._without_discord = without_discord
        self._ann, self._bob, self._den = fresh("Ann"), fresh("Bob"), fresh("den")
        self.heard: list[tuple[str, Answer]] = []

    async def hold(self) -> None:
        """Says everything."""
        for endpoint in ENDPOINTS:
            self.heard.append((endpoint, await self._world.v3.ask(f"/api/v3/{endpoint}", b" " * 70_000)))
            await self._call(endpoint)
            await self._call(endpoint, **WRONG)
        await self._accounts()
        ann, bob = [(await self._world.v3.known_person(name)).token for name in (self._ann, self._bob)]
        await self._nothing_yet(ann)
        await self._channels(ann, bob)
        await self._direct_messages(ann, bob)
        await self._discord(ann)
        await self._moderation(ann)

    async def _call(self, endpoint: str, **body: object) -> Json:
        answer = await self._world.v3.call(endpoint, None, **body)
        self.heard.append((endpoint, answer))
        return answer.body

    async def _accounts(self) -> None:
        ann = {"username": self._ann, "password": PASSWORD}
        for endpoint in ("register", "login", "gettoken", "generatetoken", "generatetoken", "gettoken", "register"):
            await self._call(endpoint, **ann)
        for endpoint in ("register", "login", "generatetoken", "gettoken"):
            await self._call(endpoint, **ann | {"password": "weak"})
            await self._call(endpoint, **ann | {"username": "ab"})
            await self._call(endpoint, **ann | {"password": "0therPassw0rd!"})
        await self._call("register", username=self._bob, password=PASSWORD)

    async def _nothing_yet(self, ann: str) -> None:
        for endpoint in ("getmysentmessages", "getchannels"):
            await self._call(endpoint, token=ann)
        for endpoint in ("getdms", "getmessagesforeveryone"):
            await self._call(endpoint, token=ann, count="5")

    async def _channels(self, ann: str, bob: str) -> None:
        den, newest = {"name": self._den}, {"name": self._den, "count": 5}
        nowhere = fresh("nowhere")
        await self._call("makechannel", token=ann, **den)
        await self._call("makechannel", token=ann, name=f"#{self._den}")
        await self._call("getchannels", token=ann)
        for channel in (self._den, nowhere, "announce"):
            await self._call("sendmessage", token=ann, channel=channel, message="hello")
        sent = (await self._call("getmysentmessages", token=ann, count=5))["sent_messages"][0]["message_id"]
        for token in (ann, bob):
            await self._call("readmessagesfromchannel", token=token, **newest)
            await self._call("readmessagesfromchannel", token=token, message_id=str(sent))
        for token in (bob, ann):
            await self._call("addusertochannel", token=token, **den, username=self._bob)
        await self._call("addusertochannel", token=ann, name=nowhere, username=self._bob)
        await self._call("addusertochannel", token=ann, **den, username=fresh("Nobody"))
        for token in (bob, ann, ann):
            await self._call("deletemessage", token=token, message_id=sent)
        await self._call("readmessagesfromchannel", token=ann, message_id=sent)
        await self._call("readmessagesfromchannel", token=ann, name=nowhere, count=5)
        await (await self._world.operator()).sends("announce", "news")
        await self._call("getmessagesforeveryone", token=ann, count=5)

    async def _direct_messages(self, ann: str, bob: str) -> None:
        for username in (self._bob, fresh("Nobody")):
            await self._call("senddm", token=ann, username=username, message="psst")
        [direct] = (await self._call("getdms", token=bob, count=5))["dms"]
        await self._call("readmessagesfromchannel", token=bob, message_id=direct["message_id"])

    async def _discord(self, ann: str) -> None:
        known = await bridge_of(self._world).meets()
        calls: list[tuple[str, Json]] = [
            ("senddcmsgwithtoken", {"message": "hello"}),
            ("senddcmsg", {"channel": known.username, "message": "hello"}),
            ("senddcmsg", {"channel": self._den, "message": "hello"}),
            ("linkdiscord", {}),
        ]
        for endpoint, body in calls:
            await self._call(endpoint, token=ann, **body)
            self.heard.append((endpoint, await self._without_discord.call(endpoint, None, token=ann, **body)))

    async def _moderation(self, ann: str) -> None:
        models = self._world.services.models
        moderation = Moderation(self._world.log, models, [OPERATOR])
        operator = await models.account_by_name(OPERATOR.lower())
        assert operator is not None
        await moderation.silence(operator, self._ann, 60, "", "c")
        await self._call("sendmessage", token=ann, channel=self._den, message="hello")
        await self._call("senddm", token=ann, username=self._bob, message="psst")
        await moderation.ban(operator, self._ann, "", "c")
        for endpoint in ("login", "generatetoken", "gettoken"):
            await self._call(endpoint, username=self._ann, password=PASSWORD)


@pytest.mark.gen_test
async def test_real_answers_are_as_it_says_and_it_says_no_others(world: World, http_client: AsyncHTTPClient) -> None:
    bridging = Bridging(
        world.log, world.services.models, world.commands, SECRET, default_channel=None, configured=False
    )
    async with serving(dataclasses.replace(world.services, bridging=bridging)) as port:
        conversation = Conversation(world, V3(f"http://127.0.0.1:{port}", http_client))
        await conversation.hold()

    heard = conversation.heard
    for endpoint, answer in heard:
        response = operation(endpoint)["responses"].get(str(answer.status))
        assert response is not None, (endpoint, answer)
        assert matches(response, answer), (endpoint, answer)
    said = {(endpoint, answer.status, answer.body.get("message")) for endpoint, answer in heard}
    assert {told for told in documented() if told[1:] not in NEEDS_A_FAULT} - said == set()
    malformed = {endpoint for endpoint, answer in heard if answer.status == 400}
    assert malformed == set(ENDPOINTS)


@pytest.mark.gen_test
async def test_real_answers_about_proofs_are_as_it_says_and_it_says_no_others(
    services: Services, database: str, http_client: AsyncHTTPClient
) -> None:
    described = DOCUMENT["paths"]["/api/v3/proof/{message_id}"]["get"]["responses"]
    heard: list[Answer] = []
    async with serving(services) as port:
        v3 = V3(f"http://127.0.0.1:{port}", http_client)
        ann, bob = await v3.person(), await v3.person()
        sent = await ann.sends(await ann.makes(), "hello")

        async def ask(message_id: object, token: str) -> None:
            bearer = {"Authorization": f"Bearer {token}"}
            heard.append(await v3.ask(f"/api/v3/proof/{message_id}", headers=bearer, method="GET"))

        await ask(sent, ann.token)
        await Checkpointer(database, SigningKey.generate("example.com/minutes"), 1).sign_now()
        for message_id, token in ((sent, ann.token), (sent, bob.token), (sent, ""), ("x", ann.token), (1, ann.token)):
            await ask(message_id, token)

    assert all(matches(described[str(answer.status)], answer) for answer in heard), heard
    said = {(answer.status, answer.body.get("message")) for answer in heard}
    told = {(int(status), text) for status, response in described.items() for text in messages(response)}
    assert told - NEEDS_A_FAULT <= said
    assert {answer.status for answer in heard} == {int(status) for status in described} - {500}


@pytest.mark.gen_test
async def test_real_answers_about_deliveries_are_as_it_says_and_it_says_no_others(world: World) -> None:
    described = DOCUMENT["paths"]["/api/v3/deliveries/"]["get"]["responses"]
    bridge, ann = bridge_of(world), await world.person()
    channel = await ann.makes()
    await bridge.joins(ann, channel)
    await ann.sends(channel, "taken")
    await bridge.delivers(ann, fresh_id(), fresh_id())
    await ann.does("senddcmsg", channel=(await bridge.meets()).username, message="given up")
    await bridge.fails(ann, "takes no direct messages")
    await ann.does("senddcmsgwithtoken", message="waits")

    heard = [
        await world.v3.ask(f"/api/v3/deliveries/{query}", headers={"Authorization": f"Bearer {token}"}, method="GET")
        for token, query in ((ann.token, ""), (ann.token, "?count=none"), (NO_SUCH_TOKEN, "?count=5"))
    ]

    assert all(matches(described[str(answer.status)], answer) for answer in heard), heard
    assert {answer.status for answer in heard} == {int(status) for status in described} - {500, 503}
    assert [each["status"] for each in heard[0].body["deliveries"]] == ["delivered", "failed", "waiting"]


async def every_bancho_answer(world: World) -> list[tuple[str, Answer]]:
    """Calls that bring about every answer of Bancho that needs no fault, with the names of their endpoints."""
    ann = await world.person()
    account = await world.services.models.account_by_name(ann.username.lower())
    assert account is not None
    key, to = f"k={quote(CI_KEY)}", "&to=%23announce"
    queries = {
        "isOnline": ["", "u=%FF", "u=%00", "id=999", f"u={ann.username}"],
        "onlineUsers": [""],
        "serverStatus": [""],
        "ciTrigger": ["", key],
        "fokabotMessage": [
            *("", key, f"{key}{to}&msg=%FF", f"{key}{to}&msg={'x' * 4001}", f"{key}{to}&msg=Hello"),
            *(f"{key}&to={other}&msg=Hello" for other in ("%23nowhere", "nobody", ann.username, "FokaBot")),
        ],
        "verifiedStatus": ["", f"u={account.account_id}"],
    }
    return [
        (endpoint, await world.v3.ask(f"/api/v1/{endpoint}?{query}", method="GET"))
        for endpoint, asked in queries.items()
        for query in asked
    ]


@pytest.mark.gen_test
async def test_real_answers_of_bancho_are_as_it_says_and_it_says_no_others(world: World) -> None:
    heard = await every_bancho_answer(world)

    for endpoint, answer in heard:
        response = bancho_operation(endpoint)["responses"].get(str(answer.status))
        assert response is not None, (endpoint, answer)
        assert matches(response, answer), (endpoint, answer)
    said = {(endpoint, answer.status, answer.body["message"]) for endpoint, answer in heard}
    told = {
        (endpoint, int(status), text)
        for endpoint in BANCHO
        for status, response in bancho_operation(endpoint)["responses"].items()
        for text in messages(response)
    }
    assert {each for each in told if each[1] < 500} - said == set()
    assert {(status, message) for _, status, message in told} >= set(BANCHO_REFUSALS.values())


@pytest.mark.parametrize("endpoint", list(BANCHO))
def test_bancho_is_asked_by_get_and_takes_the_documents_arguments(endpoint: str) -> None:
    arguments = {
        "isOnline": [("u", False), ("id", False)],
        "ciTrigger": [("k", True)],
        "fokabotMessage": [("k", True), ("to", True), ("msg", True)],
        "verifiedStatus": [("u", True)],
    }
    assert list(DOCUMENT["paths"][f"/api/v1/{endpoint}"]) == ["get"]
    described = [found(parameter) for parameter in bancho_operation(endpoint).get("parameters", [])]

    assert bancho_operation(endpoint)["operationId"] == endpoint
    assert [(each["name"], each["required"]) for each in described] == arguments.get(endpoint, [])
    assert {each["in"] for each in described} <= {"query"}


@pytest.mark.gen_test
async def test_the_operators_answers_are_as_it_says(world: World) -> None:
    for path in ("/healthz", "/readyz"):
        answer = await world.v3.ask(path, method="GET")

        assert answer.status == 200
        assert matches(DOCUMENT["paths"][path]["get"]["responses"]["200"], answer)


@pytest.mark.parametrize(
    ("name", "path", "method", "status"),
    [
        ("NotFound", "/api/v3/nothing", "POST", 404),
        ("NotFound", "/api/v1/nothing", "GET", 404),
        ("MethodNotAllowed", "/api/v3/login/", "GET", 405),
        ("BanchoMethodNotAllowed", "/api/v1/isOnline/", "POST", 405),
    ],
)
@pytest.mark.gen_test
async def test_what_is_not_asked_for_is_answered_as_it_says(
    world: World, name: str, path: str, method: str, status: int
) -> None:
    answer = await world.v3.ask(path, method=method)

    assert answer.status == status
    assert matches(DOCUMENT["components"]["responses"][name], answer)
