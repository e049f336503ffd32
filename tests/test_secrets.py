"""No secret leaves the place where it belongs: no password, no token, not the server's secret, not a key.

Servers at their most talkative go through conversations, mistakes and faults; then everything that they said and wrote
is searched: log lines, answers, every column of every table, and every file in the data folder.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from typing import Any

import psycopg
import pytest
import structlog
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tornado.ioloop import IOLoop

from audit.logs import configure_logs
from tests.listeners import SETTINGS, Chat, Ended, Refused, own_chat
from tests.servers import Answer, Client, Server, tail, until
from tests.tables import Outage
from tests.v3client import Person

StartServer = Callable[..., Server]

ALICE, BOB, WRONG = "Wond3rland!", "Bu1lder!!Bu1lder!!", "Wr0ng!guess"
CI_KEY = "the-key-of-the-ci"
SECRET = "the secret of the server"
DATABASE_PASSWORD = "the-password-of-the-database"


class Talk:
    """A conversation, with all the answers that were not meant to hold a token."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.tokens: list[str] = []
        self.link_code = ""
        self.answers: list[Answer] = []

    def post(self, endpoint: str, **body: Any) -> Answer:
        answer = self.client.post(endpoint, **body)
        self.answers.append(answer)
        return answer

    def raw(self, endpoint: str, body: bytes) -> None:
        self.answers.append(self.client.ask("POST", f"/api/v3/{endpoint}/", body))

    def token(self, username: str, password: str, endpoint: str = "generatetoken") -> str:
        token = str(self.client.must(endpoint, username=username, password=password)["token"])
        self.tokens.append(token)
        return token

    def go(self) -> None:
        """Everything that one can do right and wrong with passwords and tokens."""
        for name, password in (("Alice", ALICE), ("Bob", BOB)):
            assert self.post("register", username=name, password=password).status == 201
            assert self.post("login", username=name, password=password).status == 200
            self.token(name, password)
        first, alice = self.tokens[0], self.token("Alice", ALICE)
        assert self.token("Alice", ALICE, "gettoken") == alice != first
        assert self.post("makechannel", token=alice, name="den").status == 200
        assert self.post("addusertochannel", token=alice, name="den", username="Bob").status == 200
        for token, status in ((alice, 200), (first, 401), (alice.upper(), 401), (f"{alice} ", 401), (CI_KEY, 401)):
            assert self.post("sendmessage", token=token, channel="den", message="hello").status == status
            self.post("getdms", token=token, count="many")
        self.link_code = str(self.client.must("linkdiscord", token=alice)["code"])
        self._mistakes(alice)

    def _mistakes(self, token: str) -> None:
        for endpoint in ("register", "login", "generatetoken", "gettoken"):
            self.post(endpoint, username="Alice", password=WRONG)
            self.post(endpoint, username="Nobody", password=f"{ALICE}\0")
            self.post(endpoint, username=[ALICE], password=BOB)
            self.post(endpoint, username="Al", password=ALICE)
            self.post(endpoint, username="Alice", password=[ALICE])
            self.post(endpoint, username="Alice", password=ALICE * 3)
            self.post(endpoint, password=ALICE)
            self.raw(endpoint, json.dumps({"username": "Alice", "password": ALICE})[:-1].encode())
            self.raw(endpoint, f'{{"username": "Alice", "password": "{ALICE}\ud800"}}'.encode("utf-8", "surrogatepass"))
            self.raw(endpoint, f'"{ALICE}"'.encode())
            self.raw(endpoint, json.dumps({"password": ALICE, "filler": "x" * 70_000}).encode())
            self.answers.append(self.client.ask("PUT", f"/api/v3/{endpoint}", json.dumps([ALICE]).encode()))
        self.post("sendmessage", token=token, channel="den")
        self.post("sendmessage", token=token, channel=token, message="hello")
        self.post("senddm", token=token, username=token, message="hello")
        self.post("deletemessage", token=token, message_id=token)
        self.post("getchannels", token=[token])
        self.raw("getchannels", f'{{"token": "{token}"'.encode())
        self.answers.append(self.client.ask("GET", f"/api/v3/getchannels/?token={token}&password={ALICE}"))
        self.answers.append(self.client.ask("GET", f"/nowhere?token={token}"))
        self.client.post("sendmessage", f"{token} {ALICE}", token=token, channel="den", message="hello")

    def secrets(self) -> dict[str, str]:
        """What must be found nowhere, by what it is."""
        return {
            "Alice's password": ALICE,
            "Bob's password": BOB,
            "a wrong password": WRONG,
            "the link code": self.link_code,
            **{f"token {number}": token for number, token in enumerate(self.tokens)},
        }


def kept_as(secrets: dict[str, str]) -> dict[str, bytes]:
    """The secrets as they are, and in those forms from which they are easily had."""
    return {name: secret.encode() for name, secret in secrets.items()} | {
        f"{name} as {form}": digest
        for name, secret in secrets.items()
        if "password" in name or "device" in name
        for form, digest in {
            "hex": secret.encode().hex().encode(),
            "base64": base64.b64encode(secret.encode()),
            "unsalted hash": sha256(secret.encode()).hexdigest().encode(),
            "unsalted hash in base64": base64.b64encode(sha256(secret.encode()).digest()),
        }.items()
    }


def found_in(text: bytes, secrets: dict[str, str]) -> list[str]:
    return [name for name, secret in kept_as(secrets).items() if secret in text]


def test_a_secret_would_be_found() -> None:
    secrets = {"Alice's password": ALICE, "token 0": "8e27530f-309d-44c6-93c9-650b6fddf025"}

    assert found_in(b'{"password":"Wond3rland!"}', secrets) == ["Alice's password"]
    assert found_in(b"GET /?token=8e27530f-309d-44c6-93c9-650b6fddf025", secrets) == ["token 0"]
    assert found_in(b"V29uZDNybGFuZCE=", secrets) == ["Alice's password as base64"]
    assert found_in(sha256(ALICE.encode()).hexdigest().encode(), secrets) == ["Alice's password as unsalted hash"]
    assert found_in(b"nothing of the kind", secrets) == []


def test_no_secret_is_logged_answered_or_stored(start_server: StartServer, cluster: str, database: str) -> None:
    url = make_conninfo(database, password=DATABASE_PASSWORD)
    server = start_server(database_url=url, log_level="debug", ci_key=CI_KEY, secret=SECRET, discord_channel=77)
    with server.client() as client:
        talk = Talk(client)
        talk.go()
        provoke_refusals(talk, database)
        provoke_an_outage(talk, cluster, database)
    assert server.stop() == 0
    secrets = talk.secrets() | {"the secret": SECRET, "the key": CI_KEY, "the database's": DATABASE_PASSWORD}

    assert len(server.logged("answered")) > len(talk.answers), "every request was logged"
    assert {answer.status for answer in talk.answers} >= {200, 201, 400, 401, 404, 405, 411, 413, 500, 503}
    assert found_in(server.output.encode(), secrets) == []
    assert "$2b$" not in server.output, "hashes of passwords are nothing for log lines"
    assert found_in(json.dumps([[answer.body, answer.headers] for answer in talk.answers]).encode(), secrets) == []
    tables = everything_in(database)
    assert {"events", "accounts", "tokens", "messages"} <= tables.keys()
    assert {name: found for name, text in tables.items() if (found := found_in(text, secrets))} == {}


@pytest.fixture
def watched(io_loop: IOLoop, start_server: StartServer, database: str) -> Iterator[Chat]:
    """A server at its most talkative, and those who listen to it."""
    server = start_server(**SETTINGS, database_url=database, log_level="debug")
    yield from own_chat(io_loop, server)


@pytest.mark.gen_test
async def test_no_secret_of_listeners_is_logged_counted_told_to_others_or_stored(
    watched: Chat, cluster: str, database: str
) -> None:
    device = "the serial number of a phone"
    ann, bob = await watched.person(), await watched.person()
    witness = await watched.listens(bob)
    heard: list[object] = []
    pids = [pid async for pid in comings_and_goings(watched, ann, bob, device, heard)]
    await key_trials(watched)
    outage = Outage(cluster, database)
    outage.begin()
    with pytest.raises(Ended):
        await watched.connected(recovery=True, pid=pids[0], offset="1", token=ann.token, device=device)
    late = await watched.connected(recovery=True)
    pids.append(late.pid)
    heard += [await late.registers(ann, device=device), *late.early]
    outage.end()
    metrics = await watched.metrics()
    assert await asyncio.to_thread(watched.server.stop) == 0
    heard += (await witness.end()).events
    secrets = {
        "Ann's token": ann.token,
        "Bob's token": bob.token,
        "the device": device,
        **{f"pid {number}": pid for number, pid in enumerate(pids)},
        **{name: SETTINGS[name] for name in ("audit_key", "ci_key", "secret")},
    }

    assert len(set(pids)) >= 3
    assert len(heard) > 5
    assert found_in(json.dumps(heard).encode(), secrets) == []
    assert found_in(watched.server.output.encode(), secrets) == []
    assert found_in(metrics.encode(), secrets) == []
    tables = everything_in(database)
    assert b"ConnectionOpened" in tables["events"]
    assert {name: found for name, text in tables.items() if (found := found_in(text, secrets))} == {}
    files = [path for path in watched.server.data_dir.rglob("*") if path.is_file()]
    assert {str(path): found for path in files if (found := found_in(path.read_bytes(), secrets))} == {}


async def comings_and_goings(
    chat: Chat, ann: Person, bob: Person, device: str, heard: list[object]
) -> AsyncIterator[str]:
    """Registers and recovers connections, well and badly; their pids. What they hear is added to `heard`."""
    listener = await chat.connected(recovery=True, token=ann.token, device=device)
    yield listener.pid
    *_, offset = await listener.event()
    listener.drop()
    await bob.writes_to(ann, "missed")
    again = await chat.connected(recovery=True, pid=listener.pid, offset=offset, token=ann.token, device=device)
    heard += await again.events(1)
    # Of somebody else, damaged, at no place in the log, of no type: all of it is complained of.
    for wrong in (
        {"pid": listener.pid, "token": bob.token},
        {"pid": f"{listener.pid}x"},
        {"pid": listener.pid, "offset": ann.token},
        {"pid": [listener.pid]},
    ):
        failed = await chat.connected(**{"recovery": True, "offset": offset, **wrong})
        heard.append(await failed.event())
        yield failed.pid
        heard += [await failed.registers(ann, device=[device]), await failed.registers(ann, device=device * 20)]
    heard += [await again.registers(bob), await again.registers(ann, device=device)]
    for event, body in (("send_dm", {"username": ann.token, "message": [device]}), ("read", {"name": listener.pid})):
        heard += await again.call(event, {**body, "token": ann.token, "idempotency_key": [ann.token]})


async def key_trials(chat: Chat) -> None:
    """Uses the keys, and uses them wrong."""
    for auth in ({"key": SETTINGS["audit_key"]}, {"key": SETTINGS["audit_key"], "since": SETTINGS["audit_key"]}):
        auditor = await chat.opened("/log")
        with contextlib.suppress(Refused):
            await auditor.connect(auth)
    for key in (SETTINGS["ci_key"], SETTINGS["ci_key"].upper()):
        await chat.bancho("fokabotMessage", k=key, to="#nowhere", msg="hello")


def provoke_refusals(talk: Talk, database: str) -> None:
    """Statements with secrets in them that the database refuses, some of which it explains in detail."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE accounts ADD CONSTRAINT few CHECK (account_id < 1002)")
        connection.execute("ALTER TABLE tokens ADD CONSTRAINT few CHECK (generation < 3)")
        assert talk.post("register", username="Carol", password=ALICE).status == 500
        assert talk.post("generatetoken", username="Alice", password=ALICE).status == 500
        connection.execute("ALTER TABLE accounts RENAME TO elsewhere")
        assert talk.post("login", username="Alice", password=ALICE).status == 500
        assert talk.post("getchannels", token=talk.tokens[0]).status == 500
        connection.execute("ALTER TABLE elsewhere RENAME TO accounts")


def provoke_an_outage(talk: Talk, cluster: str, database: str) -> None:
    """Connections that break, and cannot be made again for a while."""
    name = str(conninfo_to_dict(database)["dbname"])
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute(allow.format(sql.Identifier(name), False))
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        assert talk.post("login", username="Alice", password=ALICE).status == 503
        assert talk.post("register", username="Carol", password=ALICE).status == 503
        connection.execute(allow.format(sql.Identifier(name), True))
    until(lambda: talk.post("login", username="Alice", password=ALICE).status == 200, "the server is back")


def everything_in(database: str) -> dict[str, bytes]:
    """Every column of every row of every table, as text, by the table's name."""
    with psycopg.connect(database) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        query = "SELECT string_agg(whole::text, chr(10)) FROM {} AS whole"
        texts = {
            str(name): connection.execute(sql.SQL(query).format(sql.Identifier(name))).fetchone() for (name,) in tables
        }
    # Within a row, Postgres doubles the quotes of a text.
    return {name: str(row[0]).replace('""', '"').encode() for name, row in texts.items() if row}


def test_no_secret_lies_in_any_file_but_the_one_for_it(start_server: StartServer) -> None:
    server = start_server(log_level="debug", ci_key=CI_KEY, discord_channel=77)
    with server.client() as client:
        talk = Talk(client)
        talk.go()
    assert server.stop() == 0
    secret = (server.data_dir / "secret").read_text().strip()
    secrets = talk.secrets() | {"the secret": secret, "the key": CI_KEY}

    files = [path for path in server.data_dir.rglob("*") if path.is_file() and path.name != "secret"]
    assert server.data_dir / "postgres.log" in files
    assert any(b"Alice" in path.read_bytes() for path in files), "what is no secret is there"
    assert {str(path): found for path in files if (found := found_in(path.read_bytes(), secrets))} == {}
    assert found_in(server.output.encode(), secrets) == []


def test_a_password_is_kept_as_its_salted_hash_and_a_token_as_its_digest(
    start_server: StartServer, database: str
) -> None:
    server = start_server(database_url=database, bcrypt_cost=5)
    with server.client() as client:
        token = client.enrol("Alice", ALICE)
        client.enrol("Carol", ALICE)

    events = tail(database_url=database)

    hashes = [event["data"]["password_hash"] for event in events if event["type"] == "AccountRegistered"]
    assert hashes[0] is None, "the bot's"
    assert all(re.fullmatch(r"\$2b\$05\$[./A-Za-z0-9]{53}", each) for each in hashes[1:])
    assert len(set(hashes)) == 3, "each has a salt of its own"
    digests = [event["data"]["token_digest"] for event in events if event["type"] == "TokenIssued"]
    assert digests[0] == sha256(token.encode()).hexdigest()


@pytest.fixture
def logging_is_restored() -> Iterator[None]:
    root, configuration = logging.getLogger(), structlog.get_config()
    handlers, level, alembic = root.handlers[:], root.level, logging.getLogger("alembic").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("alembic").setLevel(alembic)
    structlog.configure(**configuration)


class Stderr(io.StringIO):
    """Standard error, at a terminal or not."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.usefixtures("logging_is_restored")
@pytest.mark.parametrize("is_terminal", [True, False], ids=["a terminal", "a pipe"])
def test_a_traceback_tells_no_values_of_variables(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Stderr(is_terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logs("debug")

    def fails(token: str) -> None:
        raise RuntimeError(f"a fault of ours with {len(token)} characters")

    for log in (structlog.get_logger("a part"), logging.getLogger("discord.client")):
        try:
            fails("".join(("the-token-", "of-the-bot")))
        except RuntimeError:
            log.exception("it failed")

    said = stderr.getvalue()
    assert said.count("a fault of ours with 20 characters") == 2
    assert "the-token-of-the-bot" not in said
