"""Export and import: byte for byte the same log, nothing taken on trust, and nothing half."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cloudevents.core.formats.json import JSONFormat
from hypothesis import Phase, given
from hypothesis import settings as limits
from psycopg.conninfo import make_conninfo
from tornado.ioloop import IOLoop

import projections
from audit import cli
from audit.command import CommandFailed
from audit.export_files import lines_of, new_file
from audit.transfer import ACCOUNT_KEYS, CHANNEL_KEYS
from chat.commands import Commands
from chat.events import TYPES, AccountRegistered, Erased
from chat.passwords import PasswordHasher
from eventstore import canonical
from eventstore.errors import LogError
from eventstore.events import Context, NewEvent, RecordedEvent, StreamWrite
from eventstore.integrity.inspection import inspect
from eventstore.log import EventLog
from eventstore.merkle import rfc3339
from eventstore.transfer.checking import BadExport, ExportCheck, Imported, read_header
from eventstore.transfer.exporting import PAGE, Concerning, Selection, export_cloudevents, export_log
from eventstore.transfer.importing import NotEmpty, import_log
from eventstore.transparency import tree
from eventstore.transparency.checkpoints import Checkpointer
from eventstore.transparency.notes import SigningKey
from projections.models import ReadModels
from settings import Settings
from tests import tables
from tests.conftest import OPERATOR, SECRET, on_loop, own_database
from tests.servers import PASSWORD, Server, until
from tests.stories import STORIES, Story, Teller
from tests.tampering import tampering

ORIGIN = "minutebook.example/log"
KEY = SigningKey.generate(ORIGIN)
OTHER_KEY = SigningKey.generate(ORIGIN)
CONTEXT = Context(actor=None, correlation_id="a test")
FACT = NewEvent("Fact", canonical.encode({"text": 'tab\t, line\n, backslash \\, "quote", \u2028 \U0001f600 \x7f'}))
LOG_TABLES = (*tables.LOG, "log_head")


@pytest.fixture
def target(cluster: str) -> Iterator[str]:
    """Another migrated, empty database."""
    yield from own_database(cluster)


def exported(database: str, selection: Selection | None = None) -> bytes:
    file = io.BytesIO()
    export_log(database, file.write, selection or Selection(), origin=ORIGIN)
    return file.getvalue()


def imported(database: str, file: bytes, key: SigningKey | None = None) -> Imported:
    header, *lines = file.splitlines(keepends=True)
    verifier_key = None if key is None else key.verifier_key
    return import_log(database, read_header(header), lines, projections.ALL, key=verifier_key)


def content(database: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that a log is: its own tables as they look to everybody, and the read models."""
    with tables.connect(database) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        log = {
            name: tables.rows(connection, f"SELECT t::text FROM {name} AS t ORDER BY 1")
            for name in LOG_TABLES
            # It is made again by the checkpointer, and hangs on when it did so.
            if name != "tree_hashes"
        }
        return log | tables.read_models(connection)


def is_empty(database: str) -> bool:
    rows = content(database)
    [head] = rows.pop("log_head")
    return head == ('(t,0,"1970-01-01 00:00:00+00")',) and not any(rows.values())


async def sign(database: str, key: SigningKey = KEY) -> None:
    await Checkpointer(database, key, 3600).sign_now()


async def record(log: EventLog, stream: str, *events: NewEvent, command_id: str | None = None) -> int:
    write = StreamWrite(stream, events, expected_version=None)
    return (await log.append(write, context=CONTEXT, command_id=command_id)).last_position


@pytest.fixture
def whole(database: str, log: EventLog, io_loop: IOLoop) -> bytes:
    """The export of a small log with all that logs have: command ids, an erased event, checkpoints."""

    async def write() -> None:
        await record(log, "one", FACT, FACT, command_id='a "command"')
        await record(log, "two", FACT)
        await sign(database)
        await record(log, "one", NewEvent("Other", b"[1,-2,null,true]", schema=3), command_id="another")
        erased = Erased(None, 2, (2,), "asked for", "a test").recorded_form()
        await record(log, "one", erased)
        await sign(database)
        await record(log, "three", FACT)

    on_loop(io_loop, write)
    return exported(database)


# --- the same again ------------------------------------------------------------------------------------------------


def test_whatever_was_recorded_an_import_makes_the_same_log(
    database: str, target: str, log: EventLog, io_loop: IOLoop
) -> None:
    async def tell(story: Story) -> None:
        half = len(story) // 2
        teller = Teller()
        await teller.tell(log, story[:half])
        if half:
            await sign(database)
        await teller.tell(log, story[half:])

    with tables.connect(database) as source, tables.connect(target) as copy:

        @limits(deadline=None, max_examples=10, phases=[Phase.reuse, Phase.generate, Phase.shrink])
        @given(STORIES)
        def check(story: Story) -> None:
            tables.empty(source)
            tables.empty(copy)
            on_loop(io_loop, lambda: tell(story))
            file = exported(database)

            imported(target, file)

            assert exported(target) == file
            assert content(target) == content(database)

        check()


def test_an_imported_log_is_the_old_one_with_its_erasures_commands_and_checkpoints(
    database: str, target: str, whole: bytes
) -> None:
    done = imported(target, whole, KEY)

    assert exported(target) == whole
    assert content(target) == content(database)
    assert list(inspect(target)) == []
    leaves = [bytes.fromhex(json.loads(line)["leaf_hash"]) for line in whole.splitlines() if b"leaf_hash" in line]
    assert done == Imported(6, tree.root(leaves), checkpoints=2, covered=5)


@pytest.mark.gen_test
async def test_an_imported_log_goes_on_where_the_old_one_ended(database: str, target: str, whole: bytes) -> None:
    imported(target, whole)

    async with EventLog(target, projections.ALL) as log:
        again = await log.append(StreamWrite("one", [FACT, FACT]), context=CONTEXT, command_id='a "command"')
        assert (again.first_position, again.last_position, again.repeated) == (1, 2, True)
        assert await record(log, "one", FACT) == 7
        assert (await log.read_stream("one"))[-1].version == 5
    await sign(target)
    assert list(inspect(target)) == []


@pytest.mark.gen_test
async def test_indexes_and_keys_are_those_of_a_new_database(database: str, target: str, whole: bytes) -> None:
    def indexes(conninfo: str) -> list[tuple[Any, ...]]:
        with tables.connect(conninfo) as connection:
            return tables.rows(connection, "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")

    imported(target, whole)

    assert indexes(target) == indexes(database)


@pytest.mark.gen_test
async def test_logs_of_more_than_a_page_have_the_root_of_their_tree(database: str, target: str, log: EventLog) -> None:
    while await record(log, "long", *[FACT] * 500) < 2 * PAGE + 400:
        pass

    file = exported(database)

    *_, end = file.splitlines()
    with tables.connect(database) as connection:
        leaves = [leaf for (leaf,) in tables.rows(connection, "SELECT leaf_hash FROM events ORDER BY position")]
    assert json.loads(end) == {"end": {"events": len(leaves), "head": len(leaves), "root": tree.root(leaves).hex()}}
    assert imported(target, file).root == tree.root(leaves)
    assert exported(target) == file


def test_an_empty_log_can_be_exported_and_imported(database: str, target: str) -> None:
    file = exported(database)

    assert imported(target, file) == Imported(0, tree.EMPTY_ROOT, 0, 0)
    assert is_empty(target)
    assert exported(target) == file


def test_a_log_in_which_events_are_missing_is_not_exported_as_a_whole_one(database: str, whole: bytes) -> None:
    del whole
    with tampering(database) as log:
        log.delete(2, 3)

    with pytest.raises(LogError, match="minutebook verify"):
        exported(database)
    assert exported(database, Selection(after=3)).count(b'{"data":') == 3, "the rest can still be looked at"


def test_a_role_that_may_not_read_all_is_told_so(database: str, whole: bytes) -> None:
    with tables.connect(database) as connection:
        tables.run(connection, "CREATE ROLE visitor; GRANT SELECT ON ALL TABLES IN SCHEMA public TO visitor")
        try:
            visitor = make_conninfo(database, options="-c role=visitor")
            assert exported(visitor) == whole
            tables.run(connection, "ALTER TABLE events ENABLE ROW LEVEL SECURITY")
            with pytest.raises(LogError, match="row-level security"):
                exported(visitor)
            tables.run(
                connection, "ALTER TABLE events DISABLE ROW LEVEL SECURITY; REVOKE SELECT ON events FROM visitor"
            )
            with pytest.raises(LogError, match="permission denied"):
                exported(visitor)
        finally:
            tables.run(connection, "DROP OWNED BY visitor; DROP ROLE visitor")


def test_an_export_is_of_one_moment_whatever_is_recorded_meanwhile(
    database: str, log: EventLog, io_loop: IOLoop
) -> None:
    async def write() -> None:
        for _ in range(5):
            await record(log, "long", *[FACT] * 500)

    on_loop(io_loop, write)
    before = exported(database)
    parts: list[bytes] = []

    async def go_on() -> None:
        await record(log, "meanwhile", Erased(None, 1, (len(parts),), "asked for", "a test").recorded_form())
        await sign(database)

    def meanwhile(part: bytes) -> None:
        parts.append(part)
        on_loop(io_loop, go_on)

    export_log(database, meanwhile, origin=ORIGIN)

    assert b"".join(parts) == before
    assert exported(database) != before


# --- nothing is taken on trust -------------------------------------------------------------------------------------


def lines(file: bytes) -> list[bytes]:
    return file.splitlines(keepends=True)


def without(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda file: file[:number] + file[number + 1 :]


def changed(number: int, old: bytes, new: bytes) -> Callable[[list[bytes]], list[bytes]]:
    def change(file: list[bytes]) -> list[bytes]:
        assert old in file[number]
        return [*file[:number], file[number].replace(old, new, 1), *file[number + 1 :]]

    return change


# The lines of `whole`: the header, three events, a checkpoint, two events, a checkpoint, an event, the end.
TAMPERED: list[tuple[Callable[[list[bytes]], list[bytes]], str]] = [
    (changed(1, b"tab", b"tub"), "line 2, position 1: its leaf hash is not that of what stands there"),
    (changed(1, b"a test", b"a text"), "line 2, position 1: its leaf hash is not that"),
    (changed(1, b'"stream":"one"', b'"stream":"One"'), "line 2, position 1: its leaf hash is not that"),
    (changed(1, b'"stream":"one"', b'"stream":"o,e"'), "line 2, position 1: its stream or type has a name that no log"),
    (changed(1, b'"version":1', b'"version":2'), "line 2, position 1: it cannot have the version 2"),
    (changed(1, b'{"data":{', b'{"data": {'), "line 2, position 1: it is not in canonical form"),
    (changed(1, b'"position":1', b'"position":2'), "line 2, position 1: position 2 stands where 1 belongs"),
    (changed(5, b'"data":[1,', b'"data":[1.0,'), "line 6, position 4: this is not an event"),
    (changed(5, b'"data":[1,', b'"data":[' + b"[" * 100_000), "line 6, position 4: this is not an event"),
    (changed(5, b'"data":[1,', b'"data":["\\u0000",'), "line 6, position 4: it is not in canonical form"),
    (changed(5, b'"salt":"', b'"salt":"00'), "line 6, position 4: its salt is none"),
    (changed(5, b"Z", b"z"), "line 6, position 4: its time is not one as a log writes it"),
    (
        changed(5, b'"recorded_at":"2', b'"recorded_at":"1'),
        "line 6, position 4: it was recorded before the event before",
    ),
    (changed(2, b'"data_hash":"', b'"data_hash":"00'), "line 3, position 2: it has neither data with its salt"),
    (changed(2, b'"data":null', b'"data":7'), "line 3, position 2: it has neither data with its salt"),
    (changed(4, ORIGIN.encode(), b"other.example/log"), "line 5: "),
    (changed(4, b"\\n3\\n", b"\\n2\\n"), "line 5: the signature of minutebook.example/log is wrong"),
    (changed(4, b'"signed_at":"2', b'"signed_at":"x2'), "line 5: the time at which it was signed"),
    (changed(9, b'"events":6', b'"events":7'), "line 10: there should be 6 events, and there are 6"),
    (changed(9, b'"root":"', b'"root":"00'), "line 10: the root of the tree is not that of the events"),
    (changed(0, b'"through":6', b'"through":7'), "line 10: there should be 7 events, and there are 6"),
    (changed(0, b"+A", b"+B"), "line 1: this is no verifier key"),
    (
        changed(0, b'"verifier_key":"', b'"verifier_key":null,"x":"'),
        "line 5: there is a checkpoint, but the first line",
    ),
    (without(1), "line 2, position 1: position 2 stands where 1 belongs"),
    (without(5), "line 6, position 4: position 5 stands where 4 belongs"),
    (without(8), "line 9: there should be 6 events, and there are 5"),
    (without(9), "the file is cut off: it ends behind line 9 without saying so"),
    (lambda file: [*file[:-1], file[-1][:-5]], "line 10: this is not an event, a checkpoint or the end: it is cut off"),
    (lambda file: file[:3], "the file is cut off: it ends behind line 3"),
    (lambda file: [*file, file[-1]], "line 11: there is more behind the end"),
    (
        lambda file: [*file[:3], file[4], file[3], *file[5:]],
        "line 4: a checkpoint of 3 events stands behind position 2",
    ),
    (lambda file: [*file[:5], file[4], *file[5:]], "line 6: a checkpoint of 3 events stands behind position 3"),
    (lambda file: [*file[:2], b"\n", *file[2:]], "line 3: this is not an event, a checkpoint or the end"),
    (lambda file: [file[0], file[2], file[1], *file[3:]], "line 2, position 1: position 2 stands where 1 belongs"),
]


def test_a_tampered_file_is_refused_with_its_place_and_leaves_an_empty_log(target: str, whole: bytes) -> None:
    for tamper, fault in TAMPERED:
        header, *rest = tamper(lines(whole))
        with pytest.raises(BadExport) as refused:
            list(ExportCheck(read_header(header), None).rows(rest, io.BytesIO()))

        assert str(refused.value).startswith(fault)
        assert "\n" not in str(refused.value)
    for tamper, fault in (TAMPERED[0], TAMPERED[17], TAMPERED[-6]):
        with pytest.raises(BadExport, match=fault):
            imported(target, b"".join(tamper(lines(whole))))
    assert is_empty(target)
    assert imported(target, whole).head == 6, "what was refused is in nobody's way"


def test_a_change_of_any_byte_behind_the_header_is_noticed(whole: bytes) -> None:
    # But for the times at which checkpoints were signed, which nothing vouches for.
    header, *rest = lines(whole)
    free = [(i, line.index(b"signed_at") if b"signed_at" in line else len(line)) for i, line in enumerate(rest)]
    places = random.Random(1).sample([(i, j) for i, end in free for j in range(end)], 400)
    for i, j in places:
        line = bytearray(rest[i])
        line[j] ^= 1
        check = ExportCheck(read_header(header), None)
        with pytest.raises(BadExport):
            list(check.rows([*rest[:i], bytes(line), *rest[i + 1 :]], io.BytesIO()))


def forged(file: bytes, change: Callable[[list[dict[str, Any]]], object]) -> bytes:
    """The file with its events changed, and with all hashes made to agree with that; without checkpoints."""
    header, *rest = lines(file)
    events = [json.loads(line) for line in rest if line.startswith(b'{"data"')]
    change(events)
    frontier = tree.Frontier()
    for event in events:
        kept = (
            event.get("data_hash") or sha256(bytes.fromhex(event["salt"]) + canonical.encode(event["data"])).hexdigest()
        )
        entry = {name: event[name] for name in ("metadata", "position", "recorded_at", "stream", "type", "version")}
        event["leaf_hash"] = sha256(b"\0" + canonical.encode(entry | {"data_hash": kept})).hexdigest()
        frontier.append(bytes.fromhex(event["leaf_hash"]))
    end = {"end": {"events": len(events), "head": len(events), "root": frontier.root().hex()}}
    return b"".join([header, *(canonical.encode(each) + b"\n" for each in [*events, end])])


def erase(event: dict[str, Any]) -> None:
    event["data_hash"] = sha256(bytes.fromhex(event.pop("salt")) + canonical.encode(event["data"])).hexdigest()
    event["data"] = None


def register_twice(events: list[dict[str, Any]]) -> None:
    for version, event in enumerate((events[0], events[5]), start=1):
        registered = AccountRegistered(1000, f"Alice {version}", f"alice_{version}", None)
        event |= {"stream": "account-1000", "version": version}
        event |= {"type": "AccountRegistered", "data": msgspec.to_builtins(registered)}


FORGED: list[tuple[Callable[[list[dict[str, Any]]], object], str]] = [
    (lambda events: erase(events[0]), "position 1: it is erased, and no event says so"),
    (lambda events: erase(events[4]), "line 6, position 5: it says what was erased, and is never erased itself"),
    (lambda events: events[4]["data"].update(positions=[2, 3]), "position 3: an event says that it was erased"),
    (lambda events: events[4]["data"].update(positions=7), "no log can be made of this: "),
    (lambda events: events[4].update(version=5), "position 5: its version is not the next one of its stream"),
    (lambda events: events[3].update(version=1), "no log can be made of this: "),
    (lambda events: events[5].update(stream="one", version=1), "no log can be made of this: "),
    (register_twice, "no log can be made of this: duplicate key value"),
    (lambda events: events[3].update(type="MessageSent", data={}), "no log can be made of this: null value"),
]


def test_what_is_no_log_is_refused_even_if_all_its_hashes_agree(target: str, whole: bytes) -> None:
    assert imported(target, forged(whole, list)).checkpoints == 0, "what is only signed no more"
    with tables.connect(target) as connection:
        tables.empty(connection)
    for forge, fault in FORGED:
        with pytest.raises(BadExport) as refused:
            imported(target, forged(whole, forge))

        assert str(refused.value).startswith(fault)
    assert is_empty(target)


def test_only_the_log_s_own_key_shows_whose_an_export_is(target: str, whole: bytes) -> None:
    signed_by_another = whole.replace(str(KEY.verifier_key).encode(), str(OTHER_KEY.verifier_key).encode())
    unsigned = forged(whole, lambda events: events[0]["metadata"].update(actor=1))

    for file, key, fault in (
        (whole, OTHER_KEY, "the log of this export is signed by another key than the one given"),
        (signed_by_another, OTHER_KEY, "line 5: "),
        (signed_by_another, None, "line 5: "),
        (unsigned, KEY, "there is no checkpoint in this export, so a key shows nothing"),
    ):
        with pytest.raises(BadExport) as refused:
            imported(target, file, key)
        assert str(refused.value).startswith(fault)
    assert is_empty(target)
    assert imported(target, whole, KEY).covered == 5


def test_a_log_that_has_begun_is_not_imported_into(database: str, whole: bytes) -> None:
    before = content(database)

    with pytest.raises(NotEmpty):
        imported(database, whole)

    assert content(database) == before


@pytest.mark.parametrize(
    ("first", "fault"),
    [
        (b"", "this is no export of a log"),
        (b"\x28\xb5\x2f\xfd", "this is no export of a log"),
        (b'{"position":1}\n', "this is no export of a log"),
        (b'{"minutebook":' + b"[" * 100_000, "this is no export of a log"),
        (b'{"minutebook":"export","format":2,"origin":"a","verifier_key":null,"through":0,"whole":true}', "this is no"),
    ],
)
def test_what_is_no_export_is_called_that(first: bytes, fault: str) -> None:
    with pytest.raises(BadExport, match=fault):
        read_header(first)


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_log_up_to_some_place_is_whole_unless_what_it_holds_was_erased_later(
    database: str, target: str, log: EventLog, whole: bytes
) -> None:
    through_three = exported(database, Selection(through=1))
    assert imported(target, through_three).head == 1
    assert exported(target) == through_three

    # Event 2 is erased by event 5.
    for through in (2, 3, 4):
        with pytest.raises(BadExport, match="a part of a log"):
            imported(target, exported(database, Selection(through=through)))
    assert read_header(exported(database, Selection(through=5)).splitlines()[0]).whole


def positions(file: bytes) -> list[int]:
    return [json.loads(line)["position"] for line in file.splitlines() if line.startswith(b'{"data"')]


def test_a_stretch_of_the_log_is_exported_alone(database: str, target: str, whole: bytes) -> None:
    part = exported(database, Selection(after=2, through=4))

    assert positions(part) == [3, 4]
    assert json.loads(part.splitlines()[-1]) == {"end": {"events": 2, "head": 4, "root": None}}
    with pytest.raises(BadExport, match="a part of a log"):
        imported(target, part)
    for selection in (Selection(through=7), Selection(after=7), Selection(after=4, through=3)):
        with pytest.raises(LogError, match="position"):
            exported(database, selection)


@pytest.mark.gen_test
async def test_what_concerns_a_channel_or_an_account_is_found(database: str, log: EventLog, commands: Commands) -> None:
    alice, bob, carol = [await commands.register(name, PASSWORD, "r") for name in ("Alice", "Bob", "Carol")]
    den, attic = [await commands.make_channel(alice, name, "r") for name in ("den", "attic")]
    await commands.add_member(alice, "den", "Bob", "r")
    words = f'"channel_id":{attic.channel_id}, "sender_id":{carol.account_id}}}'
    in_den = await commands.send_message(bob, "den", words, "r")
    await commands.send_message(alice, "attic", "hello", "r")
    dm = await commands.send_direct_message(carol, "Alice", "psst", "r")
    await commands.delete_message(bob, in_den.first_position, "r")
    events = await log.read()

    def of(*wanted: Callable[[RecordedEvent], bool]) -> list[int]:
        return [event.position for event in events if any(want(event) for want in wanted)]

    def concerning(each: Concerning) -> list[int]:
        return positions(exported(database, Selection(concerning=(each,))))

    streams = {events[in_den.first_position - 1].stream}
    assert concerning(Concerning(den.channel_id, CHANNEL_KEYS, position=den.channel_id)) == of(
        lambda event: event.body().get("channel_id") == den.channel_id,
        lambda event: event.position == den.channel_id,
        lambda event: event.stream in streams,
    )
    carols = of(lambda event: b'"actor":%d,' % carol.account_id in event.metadata)
    assert dm.first_position in carols
    assert concerning(Concerning(carol.account_id, ACCOUNT_KEYS, acted=True)) == carols
    assert dm.first_position in concerning(Concerning(alice.account_id, ACCOUNT_KEYS, acted=True))


def test_extracts_know_every_key_by_which_events_name_accounts_and_channels() -> None:
    others = {"generation", "token_generation", "message_id", "delivery_id", "seconds", "reconnect_in"}
    numbers = {
        field.name
        for kind in TYPES.values()
        for field in msgspec.structs.fields(kind)
        if field.type in (int, int | None)
    }

    assert set(ACCOUNT_KEYS) | set(CHANNEL_KEYS) | others == numbers


# --- CloudEvents -----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_every_line_is_a_cloudevent_that_tells_its_event(database: str, log: EventLog, whole: bytes) -> None:
    file = io.BytesIO()

    export_cloudevents(database, file.write, origin=ORIGIN)

    events = await log.read()
    told = [JSONFormat().read(None, line) for line in file.getvalue().splitlines()]
    assert len(told) == len(events)
    for cloudevent, event in zip(told, events, strict=True):
        metadata = json.loads(event.metadata)
        attributes = cloudevent.get_attributes()
        leaf_hash = attributes.pop("leafhash")
        assert leaf_hash.encode() in whole
        expected = {
            "specversion": "1.0",
            "id": metadata["event_id"],
            "source": f"//{ORIGIN}",
            "type": f"minutebook.{event.type}",
            "subject": event.stream,
            "time": event.recorded_at,
            "sequence": f"{event.position:019}",
            "streamversion": str(event.version),
            "schemaversion": metadata["schema"],
            "correlationid": "a test",
        }
        if event.data is None:
            expected["erased"] = True
        else:
            expected["datacontenttype"] = "application/json"
        assert attributes == expected
        assert cloudevent.get_data() == (None if event.data is None else json.loads(event.data))
    assert len({(each.get_source(), each.get_id()) for each in told}) == len(told)


@pytest.mark.gen_test
async def test_a_cloudevent_names_its_actor(database: str, log: EventLog, commands: Commands) -> None:
    alice = await commands.register("Alice", PASSWORD, "r")
    file = io.BytesIO()

    export_cloudevents(database, file.write, Selection(after=3), origin="a log/ü")

    for line in file.getvalue().splitlines():
        event = JSONFormat().read(None, line)
        assert event.get_extension("actor") == str(alice.account_id)
        assert event.get_source() == "//a%20log/%C3%BC"
        assert event.get_time() == (await log.read(3, 1))[0].recorded_at
        assert rfc3339((await log.read(3, 1))[0].recorded_at).encode() in line


# --- files -----------------------------------------------------------------------------------------------------------


def read(name: Path) -> bytes:
    with lines_of(str(name)) as found:
        return b"".join(found)


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz", "log.jsonl.zst"])
def test_a_file_is_compressed_as_its_name_says_and_its_owner_s_alone(name: str, tmp_path: Path) -> None:
    path, content = tmp_path / name, b"a line\n" * 100_000

    with new_file(str(path), replace=False) as write:
        write(content[:350_000])
        write(content[350_000:])
        assert not path.exists(), "it has no name before it is whole"

    assert read(path) == content
    assert (path.stat().st_size < 10_000) is (path.suffix != ".jsonl")
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["log.jsonl.gz", "log.jsonl.zst"])
def test_a_compressed_file_that_is_damaged_or_cut_off_is_one_clear_line(
    name: str, tmp_path: Path, target: str, whole: bytes
) -> None:
    path = tmp_path / name
    with new_file(str(path), replace=False) as write:
        write(whole)
    good = path.read_bytes()

    for bad in (good[:-30], good[:60], good[: len(good) // 2] + b"?" * 9 + good[len(good) // 2 + 9 :]):
        path.write_bytes(bad)
        with pytest.raises((CommandFailed, BadExport)) as refused, lines_of(str(path)) as found:
            import_log(target, read_header(next(found, b"")), found, projections.ALL)
        assert "\n" not in str(refused.value)
    assert is_empty(target)


def interrupted(write: Callable[[bytes], object]) -> None:
    write(b"half")
    raise KeyboardInterrupt


def test_an_export_that_is_interrupted_leaves_no_file_and_an_old_one_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for old in (None, b"the old one"):
        if old is not None:
            path.write_bytes(old)
        with pytest.raises(KeyboardInterrupt), new_file(str(path), replace=True) as write:
            interrupted(write)
        assert [each.read_bytes() for each in tmp_path.iterdir()] == ([] if old is None else [old])


def test_two_exports_to_one_file_are_both_whole_and_the_first_one_stays(tmp_path: Path) -> None:
    path = str(tmp_path / "log.jsonl")

    with ExitStack() as slow:
        slow.enter_context(new_file(path, replace=False))(b"half of the slow one")
        with new_file(path, replace=False) as quick:
            quick(b"the quick one")
        with pytest.raises(CommandFailed, match="exists already"):
            slow.close()

    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"the quick one"]


def test_no_file_is_replaced_unless_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"the old one")
    for name, replace in ((path, False), (tmp_path, True), (Path("/dev/null"), True)):
        with pytest.raises(CommandFailed), new_file(str(name), replace=replace):
            pytest.fail("it was opened")
    assert path.read_bytes() == b"the old one"

    with new_file(str(path), replace=True) as write:
        write(b"the new one")

    assert path.read_bytes() == b"the new one"


# --- the commands --------------------------------------------------------------------------------------------------


def must_not_run(_settings: Settings) -> None:
    pytest.fail("the server was run")


def run(*arguments: str | Path, database: str) -> int:
    return cli.run([*map(str, arguments), "--database-url", database], must_not_run)


def test_the_commands_take_names_and_times(
    database: str,
    target: str,
    log: EventLog,
    commands: Commands,
    io_loop: IOLoop,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    async def talk() -> int:
        alice = await commands.register("Alice", PASSWORD, "r")
        await commands.make_channel(alice, "den", "r")
        await commands.send_message(alice, "den", "hello", "r")
        return await log.head()

    head = on_loop(io_loop, talk)
    since = rfc3339(on_loop(io_loop, lambda: log.read(3, 1))[0].recorded_at)

    def told(*arguments: str | Path, code: int = 0, into: str = database) -> tuple[bytes, str]:
        assert run(*arguments, database=into) == code
        out, err = capfdbinary.readouterr()
        return out, err.decode()

    assert positions(told("export")[0]) == list(range(1, head + 1))
    assert positions(told("export", "--since", since)[0]) == list(range(6, head + 1))
    assert positions(told("export", "--until", "2", "-")[0]) == [1, 2]
    assert positions(told("export", "--channel", "#Den")[0]) == [head - 1, head]
    assert 4 in positions(told("export", "--account", "aLICE")[0])
    assert json.loads(told("export", "--account", "Alice")[0].splitlines()[0])["selection"] == {"account": "Alice"}
    assert JSONFormat().read(None, told("export", "--format", "cloudevents")[0].splitlines()[0]).get_id()
    file = tmp_path / "log.jsonl.zst"
    assert told("export", file)[1] == f"exported {head} events of the positions 1 to {head} to {file}\n"
    assert "exists already" in told("export", file, code=1)[1]
    assert "no channel attic" in told("export", "--channel", "attic", code=1)[1]
    assert "no account Bob" in told("export", "--account", "Bob", code=1)[1]
    assert "no position 99 yet" in told("export", "--until", "99", code=1)[1]
    assert "nothing behind position 99" in told("export", "--since", "99", code=1)[1]
    told("export", "--since", "3", tmp_path / "part")
    assert "a part of a log" in told("import", tmp_path / "part", code=1, into=target)[1]
    assert "not empty" in told("import", file, code=1)[1]
    assert "--key" in told("import", file, "--key", "x", code=2, into=target)[1]
    out, err = told("import", "--json", file, into=target)
    assert json.loads(out).items() >= {"head": head, "checkpoints": 0, "covered": 0, "verifier_key": None}.items()
    assert "no checkpoint covers the last" in err
    assert content(target) == content(database)


def test_a_server_on_an_imported_log_serves_the_same_conversation(
    start_server: Callable[..., Server], database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    old, file, new = start_server("old", database_url=database), tmp_path / "log.jsonl.gz", tmp_path / "new"
    with old.client() as client:
        token = client.enrol("Alice")
        client.must("makechannel", token=token, name="den")
        client.must("sendmessage", token=token, channel="den", message="Grüße \\ \U0001f600")
        before = client.must("readmessagesfromchannel", token=token, name="den", count=9)
    until(lambda: b'"checkpoint"' in exported(database), "a checkpoint is signed")
    assert run("export", file, database=database) == 0
    assert old.stop() == 0
    key = SigningKey.parse((old.data_dir / "log.key").read_text()).verifier_key

    assert cli.run(["import", str(file), "--key", str(key), "--data-dir", str(new), "--json"], must_not_run) == 0

    assert json.loads(capfd.readouterr().out.splitlines()[-1])["covered"] > 0
    for kept in ("secret", "log.key"):
        shutil.copy(old.data_dir / kept, new / kept)
    with start_server("new").client() as client:
        assert client.must("readmessagesfromchannel", token=token, name="den", count=9) == before
        client.must("sendmessage", token=token, channel="den", message="and on")
        assert client.texts(token, "den")[-1] == "and on"


@pytest.mark.gen_test
async def test_another_secret_than_the_log_s_is_noticed_after_an_import(
    database: str, target: str, commands: Commands, passwords: PasswordHasher
) -> None:
    imported(target, exported(database))

    async with EventLog(target, projections.ALL) as log:
        await Commands(log, ReadModels(log), passwords, SECRET, [OPERATOR]).prepare()
        with pytest.raises(Exception, match="secret"):
            await Commands(log, ReadModels(log), passwords, b"x" * 32, [OPERATOR]).prepare()
        assert await log.head() == 3
