"""Proofs of messages: made, asked for over HTTP, written and checked on the command line and by others' code."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop

from audit import cli
from audit.command import Command, CommandFailed
from audit.output import Output
from audit.prove import CHECK, CHECKPOINT, PROVE
from chat.commands import Commands
from chat.events import Erased
from eventstore.errors import LogError
from eventstore.events import Context, StreamWrite
from eventstore.ids import new_id
from eventstore.leases import Leases
from eventstore.log import EventLog
from eventstore.transparency import tree
from eventstore.transparency.checkpoints import Checkpoint, Checkpointer
from eventstore.transparency.keys import kept_key
from eventstore.transparency.notes import BadKey, BadNote, SigningKey
from eventstore.transparency.proofs import BadProof, Opening, Proof
from eventstore.transparency.published import NotCovered, NothingToProve, Published
from settings import Settings
from tests.conftest import SECRET, on_loop
from tests.servers import NODE, PASSWORD, ROOT, Server, minutebook, until
from tests.test_tiles import entries_of
from tests.v3client import V3, Answer, Person

KEY = SigningKey.generate("example.com/minutes")
OTHER_KEY = SigningKey.generate("example.com/minutes")
CONTEXT = Context(actor=None, correlation_id="test")
TEXT = 'Grüße, "Bob" \U0001f600\n\\u0000 </script>'
StartServer = Callable[..., Server]


@pytest.fixture
def message_id(io_loop: IOLoop, log: EventLog, commands: Commands) -> int:
    """The id of a message in `database`, which no checkpoint covers yet."""

    async def talk() -> int:
        alice = await commands.register("Alice", PASSWORD, "request 1")
        await commands.make_channel(alice, "den", "request 2")
        await commands.send_message(alice, "den", TEXT, "request 3", "key")
        return await log.head()

    return on_loop(io_loop, talk)


@pytest.fixture
def proven() -> tuple[Proof, Opening]:
    """The proof and the opening of a message that stands fourth in a log of seven events."""
    opening = Opening(
        position=4,
        stream="message-0",
        version=1,
        type="MessageSent",
        metadata={"actor": 1000, "correlation_id": "request", "event_id": "event", "schema": 1},
        recorded_at="2026-01-31T12:00:00.000000Z",
        data={"channel_id": 2, "sender_id": 1000, "text": TEXT},
        salt="0f" * 16,
    )
    leaves = [tree.node_hash(b"%d" % number, b"") for number in range(7)]
    leaves[3] = opening.leaf_hash()
    note = KEY.sign(Checkpoint(KEY.name, 7, tree.root(leaves)).text())
    return Proof(3, tuple(tree.inclusion_proof(3, 7, tree.of_leaves(leaves))), note), opening


def changed(opening: Opening, **fields: object) -> Opening:
    return msgspec.structs.replace(opening, **fields)


# Proofs by themselves


def test_a_proof_and_its_opening_are_read_back_from_their_texts(proven: tuple[Proof, Opening]) -> None:
    proof, opening = proven

    assert Proof.parse(proof.text()) == proof
    assert Opening.parse(opening.json()) == opening
    assert proof.check(opening, KEY.verifier_key).size == 7


def test_an_opening_may_be_spaced_and_ordered_anyhow(proven: tuple[Proof, Opening]) -> None:
    proof, opening = proven
    told = json.loads(opening.json())
    turned = json.dumps({name: told[name] for name in reversed(told)}, indent=7).encode()

    assert proof.check(Opening.parse(turned), KEY.verifier_key).origin == KEY.name


@pytest.mark.parametrize("place", [b'  "data": {', b'"text":'])
def test_nothing_is_told_twice_in_an_opening(proven: tuple[Proof, Opening], place: bytes) -> None:
    text = proven[1].json()
    key = place.partition(b":")[0]
    twice = text.replace(place, key + b': {"text": "forged"}, ' + place, 1)
    assert twice != text

    with pytest.raises(BadProof, match="stands in it twice"):
        Opening.parse(twice)


def test_whatever_is_changed_in_the_message_is_found(proven: tuple[Proof, Opening]) -> None:
    proof, opening = proven
    forged = [
        changed(opening, data=opening.data | {"text": TEXT + " "}),
        changed(opening, data=opening.data | {"more": 1}),
        changed(opening, metadata=opening.metadata | {"actor": 999}),
        changed(opening, recorded_at=opening.recorded_at.replace("20", "21", 1)),
        changed(opening, stream=f"{opening.stream}0"),
        changed(opening, version=2),
        changed(opening, type="DirectMessageSent"),
        changed(opening, salt="00" * 16),
        changed(opening, position=opening.position - 1),
        changed(opening, data={"n": 1.5}),
        changed(opening, salt="salt"),
        changed(opening, recorded_at="yesterday"),
        changed(opening, recorded_at=opening.recorded_at.removesuffix("Z")),
        # What the parsers of these would take for the same.
        changed(opening, recorded_at=opening.recorded_at.replace("Z", "9Z")),
        changed(opening, recorded_at=opening.recorded_at.replace("Z", "+00:00")),
        changed(opening, salt=f"{opening.salt[:2]} {opening.salt[2:]}"),
        changed(opening, recorded_at="0001-01-01T00:00:00.000000+23:59"),
    ]

    for each in forged:
        with pytest.raises(BadProof):
            proof.check(each, KEY.verifier_key)


def test_no_event_can_be_told_as_another_by_breaking_out_of_its_place(proven: tuple[Proof, Opening]) -> None:
    proof, opening = proven
    # The same bytes, were they put together from these: the stream's name goes on with the type.
    swallowed = changed(opening, stream=f'{opening.stream}","type":"{opening.type}', type=opening.type)

    with pytest.raises(BadProof, match="cannot be one's"):
        proof.check(swallowed, KEY.verifier_key)


def test_whatever_is_changed_in_the_proof_is_found(proven: tuple[Proof, Opening]) -> None:
    proof, opening = proven
    small = Checkpoint(KEY.name, 1, tree.root([opening.leaf_hash()]))
    forged = [
        Proof(proof.index + 1, proof.hashes, proof.checkpoint),
        Proof(proof.index, proof.hashes[:-1], proof.checkpoint),
        Proof(proof.index, proof.hashes[::-1], proof.checkpoint),
        Proof(proof.index, (), OTHER_KEY.sign(small.text())),
        Proof(proof.index, (), KEY.sign(small.text())),
        Proof(proof.index, proof.hashes, proof.checkpoint.replace("\n", "\n\n", 1)),
    ]

    for each in forged:
        with pytest.raises((BadProof, BadNote)):
            each.check(opening, KEY.verifier_key)
    with pytest.raises(BadNote, match="none of the known keys"):
        proof.check(opening, OTHER_KEY.verifier_key)


def test_extra_data_is_passed_over(proven: tuple[Proof, Opening]) -> None:
    proof, _ = proven

    assert Proof.parse(proof.text().replace("index", "extra AAAA\nindex", 1)) == proof


@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: text[:0],
        lambda text: text.replace("@v1", "@v2"),
        lambda text: text.replace("index ", "index 0"),
        lambda text: text.replace("index ", "index -"),
        lambda text: text.replace("index ", "index " + "1" * 30),
        lambda text: text.replace("\n\n", "\n"),
        lambda text: text.replace("\n\n", "\nAAAA\n\n", 1),
        lambda text: text.replace("\n\n", "\n****\n\n", 1),
        lambda text: text.replace("\n\n", f"\n{'A' * 43}=" * 64 + "\n\n", 1),
        lambda text: "c2sp.org/tlog-proof@v1\n\n" + text,
    ],
)
def test_what_is_no_proof_is_refused(proven: tuple[Proof, Opening], wrong: Callable[[str], str]) -> None:
    with pytest.raises(BadProof):
        Proof.parse(wrong(proven[0].text()))


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"position": 1}', b"\xff", b"[" * 100_000])
def test_what_is_no_opening_is_refused(text: bytes) -> None:
    with pytest.raises(BadProof):
        Opening.parse(text)


@pytest.mark.gen_test
async def test_every_event_of_a_conversation_is_proven(log: EventLog, database: str, message_id: int) -> None:
    published = Published(log.reader)
    with pytest.raises(NotCovered):
        await published.prove(message_id)
    await Checkpointer(database, KEY, 1).sign_now()

    for position in range(1, message_id + 1):
        proof, opening = await published.prove(position)
        assert proof.check(opening, KEY.verifier_key).size == message_id
        if position == message_id:
            assert (opening.type, opening.data["text"]) == ("MessageSent", TEXT)
    with pytest.raises(NothingToProve):
        await published.prove(message_id + 1)


async def erase(log: EventLog, position: int) -> None:
    erased = Erased(
        account_id=None, message_id=position, positions=(position,), reason="asked for", erased_by="operator"
    )
    await log.append(StreamWrite(f"erasure-{new_id()}", [erased.recorded_form()]), context=CONTEXT)


@pytest.mark.gen_test
async def test_an_erasure_leaves_every_other_proof_as_it_was(log: EventLog, database: str, message_id: int) -> None:
    published = Published(log.reader)
    await Checkpointer(database, KEY, 1).sign_now()
    before = {position: await published.prove(position) for position in range(1, message_id)}

    await erase(log, message_id)
    await Checkpointer(database, KEY, 1).sign_now()

    assert {position: await published.prove(position) for position in range(1, message_id)} == before
    with pytest.raises(NothingToProve, match="was erased"):
        await published.prove(message_id)
    proof, opening = await published.prove(message_id + 1)
    assert proof.check(opening, KEY.verifier_key).size == message_id + 1


# Somebody else's code


def sigstore(proof: str, entry: bytes, key: SigningKey = KEY) -> int | None:
    """The size of the tree in which Sigstore's code for JavaScript finds the entry; None if it refuses the proof."""
    done = subprocess.run(
        [NODE, ROOT / "tests/javascript/check_proof.js", str(key.verifier_key)],
        input=json.dumps({"proof": proof, "entry": entry.decode()}),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0 or "VerificationError" in done.stderr, done.stderr
    return int(done.stdout) if done.returncode == 0 else None


@pytest.mark.gen_test(timeout=60)
async def test_an_independent_implementation_accepts_our_proofs_and_no_forged_ones(
    log: EventLog, database: str, message_id: int
) -> None:
    published = Published(log.reader)
    await Checkpointer(database, KEY, 1).sign_now()
    proof, _ = await published.prove(message_id - 2)
    bundle = await published.entries(0, message_id)
    assert bundle is not None
    entries = entries_of(bundle)
    entry, another = entries[message_id - 3], entries[0]

    assert sigstore(proof.text(), entry) == message_id
    assert sigstore(proof.text(), another) is None
    assert sigstore(proof.text(), entry, OTHER_KEY) is None
    assert sigstore(Proof(proof.index, proof.hashes[::-1], proof.checkpoint).text(), entry) is None


# Over HTTP


@pytest.fixture
def v3(http_client: AsyncHTTPClient, base_url: str) -> V3:
    return V3(base_url, http_client)


async def asked(v3: V3, who: Person | None, message_id: object, scheme: str = "Bearer") -> Answer:
    headers = {} if who is None else {"Authorization": f"{scheme} {who.token}"}
    return await v3.ask(f"/api/v3/proof/{message_id}", headers=headers, method="GET")


def shows(answer: Answer) -> str:
    """The text that an answer proves to have been recorded."""
    assert answer.status == 200, answer
    assert answer.body.keys() == {"proof", "opening"}
    opening = Opening.parse(json.dumps(answer.body["opening"]).encode())
    Proof.parse(answer.body["proof"]).check(opening, KEY.verifier_key)
    return str(opening.data["text"])


@pytest.mark.gen_test
async def test_those_who_may_read_a_message_get_its_proof_and_others_do_not(v3: V3, database: str) -> None:
    ann, bob, eve = await v3.person(), await v3.person(), await v3.person()
    den = await ann.makes()
    await ann.brings(bob, den)
    sent = await ann.sends(den, "to the den")
    await ann.does("senddm", username=bob.username, message="to Bob")
    [direct] = (await bob.does("getdms", count=1)).body["dms"]
    await Checkpointer(database, KEY, 1).sign_now()

    for reader in (ann, bob):
        assert shows(await asked(v3, reader, sent)) == "to the den"
        assert shows(await asked(v3, reader, f"{direct['message_id']}/", "bearer")) == "to Bob"
    for message_id in (sent, direct["message_id"]):
        assert (await asked(v3, eve, message_id)).said == (
            403,
            {"message": "Your not allowed to read this message!"},
        )
    await ann.does("deletemessage", message_id=sent)
    assert (await asked(v3, ann, sent)).said == (404, {"message": "Message not found!"})


@pytest.mark.gen_test
async def test_who_does_not_say_who_they_are_or_what_they_ask_for_gets_no_proof(v3: V3) -> None:
    ann = await v3.person()
    stranger = ann._replace(token="7a7dd0f1-0000-4000-8000-000000000000")

    for who, scheme in ((None, ""), (stranger, "Bearer"), (ann, "Basic"), (ann._replace(token=""), "Bearer")):
        assert (await asked(v3, who, 1, scheme)).said == (401, {"message": "Invalid token!"})
    for message_id in ("x", "0", "-1", "1.5", str(2**63), "%00"):
        answer = await asked(v3, ann, message_id)
        assert (answer.status, answer.body["message"].split()[0]) == (400, "message_id:"), message_id
    assert (await asked(v3, ann, 10**9)).said == (404, {"message": "Message not found!"})
    assert (await asked(v3, ann, 1)).said == (404, {"message": "Message not found!"}), "no message, but an event"
    posted = await v3.ask("/api/v3/proof/1", b"{}")
    assert (posted.status, posted.headers["Allow"]) == (405, "GET")


@pytest.mark.gen_test
async def test_a_message_that_no_checkpoint_covers_yet_is_asked_for_again(v3: V3, database: str) -> None:
    ann = await v3.person()
    sent = await ann.sends(await ann.makes(), "just now")

    answer = await asked(v3, ann, sent)
    assert answer.said == (503, {"message": "No checkpoint covers the message yet, try again!"})
    assert answer.headers["Retry-After"] == "2"
    await Checkpointer(database, KEY, 1).sign_now()
    assert shows(await asked(v3, ann, sent)) == "just now"


# On the command line


def command(done: Command, settings: Settings | None = None, **given: object) -> list[dict[str, Any]]:
    """What a command shows as JSON."""
    shown = io.TextIOWrapper(io.BytesIO())
    assert done.run(settings or Settings(), Output(as_json=True, stdout=shown), **given) in (None, 0)
    shown.seek(0)
    return [json.loads(line) for line in shown]


@pytest.fixture
def settings(database: str, tmp_path: Path) -> Settings:
    """Those of an operator who has the log's key."""
    return Settings(database_url=database, data_dir=tmp_path, log_key=str(KEY), checkpoint_interval=1)


@pytest.fixture
def files(settings: Settings, message_id: int, tmp_path: Path) -> tuple[Path, Path]:
    """A message's proof and opening as `prove` writes them."""
    [told] = command(PROVE, settings, message_id=message_id, place=tmp_path)
    assert told["key"] == str(KEY.verifier_key)
    return Path(told["proof"]), Path(told["message"])


def checked(proof: Path, message: Path | None = None, key: SigningKey = KEY) -> dict[str, Any]:
    [told] = command(CHECK, proof=proof, message=message, key=key.verifier_key)
    return told


def test_what_prove_writes_check_confirms(files: tuple[Path, Path], message_id: int) -> None:
    proof, message = files

    told = checked(proof)

    assert [file.name for file in files] == [f"message-{message_id}.tlog-proof", f"message-{message_id}.json"]
    assert (told["log"], told["position"], told["data"]["text"]) == (KEY.name, message_id, TEXT)
    assert checked(proof, message) == told


def test_check_finds_what_was_changed(files: tuple[Path, Path]) -> None:
    proof, message = files
    with pytest.raises(BadNote):
        checked(proof, key=OTHER_KEY)
    message.write_text(message.read_text().replace("Bob", "Eve"))
    with pytest.raises(BadProof, match="this is not what the log has recorded"):
        checked(proof)
    message.write_bytes(b"x" * (1 << 20) + b"y")
    with pytest.raises(CommandFailed, match="too large"):
        checked(proof)
    message.unlink()
    for missing in (proof, Path(), Path("/")):
        with pytest.raises(CommandFailed, match="there is no file"):
            checked(missing)
    proof.write_bytes(b"\xff")
    with pytest.raises(CommandFailed, match="not even a text"):
        checked(proof)


def test_what_a_hostile_file_says_is_not_obeyed_by_the_terminal(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    proof, message = files
    message.write_text('{"\\u001b[2J\\u009b2J": 1}')

    assert cli.run(["check", str(proof), "--key", str(KEY.verifier_key)], lambda _: None) == 1

    told = capsys.readouterr().err
    assert r"\x1b[2J\x9b2J" in told
    assert told.rstrip("\n").isprintable()


def test_the_proof_may_be_given_a_name_or_a_folder(settings: Settings, message_id: int, tmp_path: Path) -> None:
    command(PROVE, settings, message_id=message_id, place=tmp_path / "mine.tlog-proof")
    assert checked(tmp_path / "mine.tlog-proof")["position"] == message_id
    assert (tmp_path / "mine.json").exists()

    with pytest.raises(CommandFailed, match="there is no folder"):
        command(PROVE, settings, message_id=message_id, place=tmp_path / "nowhere")


def test_the_newest_checkpoint_is_printed(settings: Settings, files: tuple[Path, Path], message_id: int) -> None:
    assert files

    [told] = command(CHECKPOINT, settings)

    assert Checkpoint.open(told["note"], KEY.verifier_key).size == told["size"] == message_id
    shown = io.TextIOWrapper(io.BytesIO())
    CHECKPOINT.run(settings, Output(as_json=False, stdout=shown))
    shown.seek(0)
    assert shown.read() == told["note"]


def test_what_cannot_be_proven_is_told(io_loop: IOLoop, log: EventLog, settings: Settings, message_id: int) -> None:
    on_loop(io_loop, lambda: erase(log, message_id))

    for position, problem in (
        (message_id, "was erased"),
        (message_id - 1, "is no message, but"),
        (message_id + 10, "there is no event"),
    ):
        with pytest.raises((LogError, CommandFailed), match=problem):
            command(PROVE, settings, message_id=position, place=settings.data_dir)
    assert list(settings.data_dir.iterdir()) == []


def test_before_the_first_checkpoint_there_is_none_to_print(settings: Settings) -> None:
    with pytest.raises(CommandFailed, match="no checkpoint was signed yet"):
        command(CHECKPOINT, settings)


def denied(*_arguments: object, **_options: object) -> str:
    # The tests may run as root, who may read everything.
    raise PermissionError("this is not for you")


def test_without_the_key_a_server_s_checkpoint_is_waited_for(
    io_loop: IOLoop, database: str, settings: Settings, message_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.prove._GRACE_SECONDS", 0.0)
    keyless = dataclasses.replace(settings, log_key=None)
    stranger = dataclasses.replace(settings, log_key=str(OTHER_KEY))

    def prove(chosen: Settings) -> None:
        command(PROVE, chosen, message_id=message_id, place=settings.data_dir)

    with pytest.raises(CommandFailed, match="no server runs"):
        prove(keyless)
    (settings.data_dir / "log.key").touch()
    with monkeypatch.context() as denying:
        denying.setattr(Path, "read_text", denied)
        with pytest.raises(CommandFailed, match="no server runs"):
            prove(keyless)
    (settings.data_dir / "log.key").unlink()

    async def with_a_server(chosen: Settings, *, signing: bool) -> None:
        leases = Leases(database, "a server")
        await leases.renew()
        proving = asyncio.create_task(asyncio.to_thread(prove, chosen))
        if signing:
            await Checkpointer(database, KEY, 1).sign_now()
        try:
            await proving
        finally:
            await leases.close()

    with pytest.raises(CommandFailed, match="no server has signed one"):
        on_loop(io_loop, lambda: with_a_server(keyless, signing=False))
    on_loop(io_loop, lambda: with_a_server(keyless, signing=True))
    on_loop(io_loop, lambda: with_a_server(stranger, signing=False))
    assert checked(settings.data_dir / f"message-{message_id}.tlog-proof")["position"] == message_id


# All together


def test_a_server_signs_by_a_key_of_its_own_and_its_proofs_are_checked_elsewhere(
    start_server: StartServer, database: str, tmp_path: Path
) -> None:
    server = start_server(database_url=database, checkpoint_interval=1, origin="chat.example/minutes")
    key_file = server.data_dir / "log.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    signing_key = SigningKey.parse(key_file.read_text())
    with server.client() as client:
        token = client.enrol("Alice")
        client.must("makechannel", token=token, name="den")
        client.must("sendmessage", token=token, channel="den", message=TEXT)
        [sent] = client.must("getmysentmessages", token=token)["sent_messages"]
        bearer = {"Authorization": f"Bearer {token}"}

        def proof_over_http() -> str | None:
            answer = client.ask("GET", f"/api/v3/proof/{sent['message_id']}", headers=bearer)
            return answer.body["proof"] if answer.status == 200 else None

        over_http = until(proof_over_http, "a checkpoint covers the message")
    assert str(signing_key).split("+", 4)[4] not in server.output
    keyless = Settings(database_url=database, data_dir=tmp_path)
    [told] = command(PROVE, keyless, message_id=sent["message_id"], place=tmp_path)
    assert Path(told["proof"]).read_text() == over_http

    confirmed = minutebook("check", told["proof"], "--key", str(signing_key.verifier_key), cwd=tmp_path)
    assert (confirmed.returncode, json.loads(confirmed.stdout)["data"]["text"]) == (0, TEXT), confirmed.stderr


def test_a_server_without_the_log_s_key_signs_nothing_and_makes_none(
    start_server: StartServer, io_loop: IOLoop, database: str, message_id: int
) -> None:
    assert message_id
    on_loop(io_loop, lambda: Checkpointer(database, KEY, 1).sign_now())

    server = start_server(database_url=database, secret=SECRET.decode(), checkpoint_interval=1)

    assert not (server.data_dir / "log.key").exists()
    [warning] = server.logged("this server signs no checkpoints")
    assert (warning["level"], warning["key"]) == ("warning", str(KEY.verifier_key))


def test_the_key_is_the_one_that_was_given_or_else_the_one_that_is_kept(tmp_path: Path) -> None:
    assert kept_key(None, tmp_path) is None
    (tmp_path / "log.key").write_text(f"{KEY}\n")

    assert kept_key(None, tmp_path) == KEY
    assert kept_key(str(OTHER_KEY), tmp_path) == OTHER_KEY


def test_a_key_that_is_none_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(BadKey, match="log_key: this is no signing key") as refused:
        kept_key("PRIVATE+KEY+a+0+nonsense", tmp_path)
    assert "nonsense" not in str(refused.value)
    for content in (b"", b"\xff\xfe"):
        (tmp_path / "log.key").write_bytes(content)
        with pytest.raises(BadKey, match=r"log\.key: this is no signing key"):
            kept_key(None, tmp_path)
