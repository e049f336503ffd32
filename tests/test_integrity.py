"""The inspection of the log: it finds nothing in a log that was left alone, and every tampering at its place."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tornado.ioloop import IOLoop

from audit import cli
from chat.commands import Commands
from eventstore.canonical import encode
from eventstore.errors import LogError
from eventstore.events import Context, NewEvent, StreamWrite
from eventstore.integrity import inspection
from eventstore.integrity.findings import Finding, runs
from eventstore.integrity.inspection import Inspection, inspect
from eventstore.integrity.tree import GrowingTree, KeptCheckpoint, TreeInspection
from eventstore.log import EventLog
from eventstore.transparency import tree
from eventstore.transparency.checkpoints import Checkpoint, Checkpointer
from eventstore.transparency.notes import SigningKey, encode_base64
from tests import tables
from tests.conftest import on_loop
from tests.servers import until
from tests.tampering import Tampering, tampering

KEY = SigningKey.generate("log.example")
OTHER_KEY = SigningKey.generate("log.example")
VKEY = KEY.verifier_key
CONTEXT = Context(1000, "a request")
# The log that is tampered with: its length, where checkpoints were signed, and which event was erased.
SIZE, SIGNED, ERASED = 601, (300, 600), 50
RANGES = (inspection.RANGE, 100)

CHECKS = {
    "gap",
    "position",
    "leaf",
    "time",
    "version",
    "erasure",
    "command",
    "tree",
    "checkpoint",
    "head",
    "guards",
    "models",
}

Where = tuple[str, int | None, int | None]


@dataclass(frozen=True)
class Minutes:
    """A log in a database of its own that is copied for each test, and its checkpoints by their sizes."""

    name: str
    notes: dict[int, str]


@pytest.fixture(scope="module")
def minutes(cluster: str) -> Iterator[Minutes]:
    name = "minutes_for_tampering"
    with tables.connect(cluster) as connection:
        tables.run(connection, "CREATE DATABASE {} TEMPLATE template_for_tests", name)
    yield Minutes(name, asyncio.run(talk(make_conninfo(cluster, dbname=name))))
    with tables.connect(cluster) as connection:
        tables.run(connection, "DROP DATABASE {} WITH (FORCE)", name)


async def talk(database: str) -> dict[int, str]:
    """Six hundred events and one, of which every tenth goes on with one of few streams; the 200th erases the 50th."""
    notes: dict[int, str] = {}
    async with EventLog(database) as log:
        for begin in range(0, 600, 50):
            streams = [
                (f"message-{n}", 0) if n % 10 else (f"thread-{n // 100}", None) for n in range(begin, begin + 50)
            ]
            writes = [
                StreamWrite(stream, [said(n)], expected_version=version)
                for n, (stream, version) in enumerate(streams, start=begin)
            ]
            await log.append(*writes, context=CONTEXT, command_id=f"command {begin}" if begin % 100 else None)
            if begin + 50 in SIGNED:
                notes[begin + 50] = (await Checkpointer(database, KEY, 10).sign_now()).note
        await log.append(StreamWrite("message-600", [said(600)]), context=CONTEXT)
    return notes


def said(n: int) -> NewEvent:
    if n == 199:
        return NewEvent("Erased", encode({"positions": [ERASED]}))
    return NewEvent("Said", encode({"sender_id": 1000 + n % 7, "text": f"word {n}"}))


@pytest.fixture
def database(cluster: str, minutes: Minutes) -> Iterator[str]:
    """A copy of those minutes; its connection string."""
    name = "minutes_tampered_with"
    with tables.connect(cluster) as connection:
        tables.run(connection, "CREATE DATABASE {} TEMPLATE {}", name, minutes.name)
    yield make_conninfo(cluster, dbname=name)
    with tables.connect(cluster) as connection:
        tables.run(connection, "DROP DATABASE {} WITH (FORCE)", name)


def found(database: str, range_size: int = inspection.RANGE, **outside: str) -> list[Where]:
    """What is found, by check and place."""
    inspection = Inspection(database, outside=outside, key=VKEY, range_size=range_size)
    return [(finding.check, finding.position, finding.through) for finding in inspection.findings()]


# --- The drill -------------------------------------------------------------------------------------------------------


def change_text(log: Tampering) -> None:
    log.change(123, data='{"sender_id":1003,"text":"never said"}')


def change_sender(log: Tampering) -> None:
    log.change(256, data='{"sender_id":1001,"text":"word 255"}')


def change_time(log: Tampering) -> None:
    log.run("UPDATE events SET recorded_at = recorded_at + interval '1 microsecond' WHERE position = 250")


def swap_two(log: Tampering) -> None:
    log.swap(401, 402)


def delete_one(log: Tampering) -> None:
    log.delete(320, 321)


def insert_one(log: Tampering) -> None:
    log.insert(333)


def cut_the_tail_off(log: Tampering) -> None:
    log.delete(550, SIZE)
    log.run("DELETE FROM tree_hashes WHERE index > 1; DELETE FROM commands WHERE last_position > 550")
    log.move_head(550)


def forge_history(log: Tampering) -> None:
    """Changes what was said, and every hash that shows it."""
    change_text_at(log, 400)
    log.run("DELETE FROM tree_hashes")


def change_text_at(log: Tampering, position: int) -> None:
    log.change(position, data='{"sender_id":1000,"text":"never said"}')
    log.hash_anew(position)


DRILL: list[tuple[Callable[[Tampering], None], Where]] = [
    (change_text, ("leaf", 123, 123)),
    (change_sender, ("leaf", 256, 256)),
    (change_time, ("leaf", 250, 250)),
    (swap_two, ("leaf", 401, 402)),
    (delete_one, ("gap", 321, 321)),
    (insert_one, ("leaf", 333, 602)),
    (cut_the_tail_off, ("checkpoint", 551, 600)),
    (forge_history, ("checkpoint", 301, 600)),
]


@pytest.mark.parametrize(("tamper", "where"), DRILL, ids=lambda each: getattr(each, "__name__", ""))
def test_the_drill_every_tampering_is_found_at_its_place(
    database: str, tamper: Callable[[Tampering], None], where: Where
) -> None:
    with tampering(database) as log:
        tamper(log)

    assert found(database)[0] == where
    in_small_ranges = [each for each in found(database, range_size=100) if each[:2] == where[:2]]
    assert in_small_ranges, "the ranges in which the log is read do not show"


AUDITING = (Path(__file__).parents[1] / "docs/auditing.md").read_text()
DOCUMENTED = re.findall(r"```sql\n-- (\w+) (\d+)\n(.*?)```", AUDITING, re.DOTALL)


@pytest.mark.parametrize(("check", "position", "statements"), DOCUMENTED)
def test_the_drill_of_the_document_is_found_as_it_says(
    database: str, minutes: Minutes, check: str, position: str, statements: str
) -> None:
    with tampering(database) as log:
        log.run(statements)

    assert found(database, kept=minutes.notes[600])[0][:2] == (check, int(position))


def test_the_document_has_the_whole_drill_and_all_checks(minutes: Minutes) -> None:
    assert len(DOCUMENTED) == 7 == AUDITING.count("```sql")
    listed = set(re.findall(r"^\| `(\w+)` \|", AUDITING, re.MULTILINE))
    assert listed == CHECKS


@pytest.mark.parametrize("tamper", [cut_the_tail_off, forge_history])
def test_who_deletes_the_checkpoints_too_is_found_by_one_that_was_kept_outside(
    database: str, minutes: Minutes, tamper: Callable[[Tampering], None]
) -> None:
    with tampering(database) as log:
        tamper(log)
        log.forget_checkpoints()

    assert found(database) == [], "nothing is left in the database that could tell"
    begin = 551 if tamper is cut_the_tail_off else 1
    assert found(database, kept=minutes.notes[600]) == [("checkpoint", begin, 600)]
    # One that was signed before tells how far the log was still the same.
    both = found(database, old=minutes.notes[300], new=minutes.notes[600])
    assert both == [("checkpoint", max(begin, 301), 600)]


def test_a_log_that_was_left_alone_has_no_findings(database: str, minutes: Minutes) -> None:
    for size in RANGES:
        inspection = Inspection(database, outside={"kept": minutes.notes[600]}, range_size=size)

        assert list(inspection.findings()) == []

        assert (inspection.events, inspection.checkpoints, inspection.key) == (SIZE, (3, 1), VKEY)
        with tables.connect(database) as connection:
            leaves = [leaf for (leaf,) in tables.rows(connection, "SELECT leaf_hash FROM events ORDER BY position")]
        assert inspection.root == tree.root(leaves)


@settings(deadline=None, max_examples=25)
@given(
    position=st.integers(1, SIZE),
    column=st.sampled_from(["stream", "version", "type", "data", "metadata", "recorded_at", "salt", "leaf_hash"]),
    range_size=st.sampled_from([7, 100, 256, inspection.RANGE]),
)
def test_no_column_of_any_event_can_be_changed_unseen(shared: str, position: int, column: str, range_size: int) -> None:
    with tampering(shared) as log:
        kept = tables.rows(log.connection, f"SELECT {column}{_text(column)} FROM events WHERE position = {position}")
        if position == ERASED and column in ("data", "salt"):
            return  # They are gone already; that they come back is another test's.
        log.run(f"UPDATE events SET {column} = {_CHANGES[column]} WHERE position = {position}")
    try:
        checks = {(check, at) for check, first, last in found(shared, range_size) for at in (first, last)}
        assert ("leaf", position) in checks
    finally:
        with tampering(shared) as log:
            log.change(position, **{column: kept[0][0]})


_CHANGES = {
    "stream": "stream || 'x'",
    "version": "version + 1000",
    "type": "'Other'",
    "data": """'{"text":""}'""",
    "metadata": """'{"actor":1}'""",
    "recorded_at": "recorded_at - interval '1 microsecond'",
    "salt": "sha256(salt)",
    "leaf_hash": "sha256(leaf_hash)",
}


def _text(column: str) -> str:
    return "::text" if column in ("data", "metadata") else ""


@pytest.fixture(scope="module")
def shared(cluster: str, minutes: Minutes) -> Iterator[str]:
    """A copy for the many examples of a property, each of which cleans up."""
    with tables.connect(cluster) as connection:
        tables.run(connection, "CREATE DATABASE minutes_shared TEMPLATE {}", minutes.name)
    yield make_conninfo(cluster, dbname="minutes_shared")
    with tables.connect(cluster) as connection:
        tables.run(connection, "DROP DATABASE minutes_shared WITH (FORCE)")


# --- Positions, versions, times, the head ----------------------------------------------------------------------------


def shift_version(log: Tampering) -> None:
    log.change(201, version=70)
    log.hash_anew(201)


def swap_versions(log: Tampering) -> None:
    for position, version in ((101, 1000), (111, 1), (101, 2)):
        log.change(position, version=version)
    for position in (101, 111):
        log.hash_anew(position)


def set_clock_back(log: Tampering) -> None:
    log.run("UPDATE events SET recorded_at = recorded_at - interval '1 day' WHERE position = 301")
    log.hash_anew(301)


def bury_in_antiquity(log: Tampering) -> None:
    """Moves all times to years before Christ, which an entry writes like those after."""
    digits = "YYYY-MM-DD HH24:MI:SS.US"
    log.run(
        "UPDATE events SET recorded_at = "
        f"to_timestamp(to_char(timezone('UTC', recorded_at), '{digits}') || ' BC', '{digits} BC')"
    )


def delete_the_first(log: Tampering) -> None:
    log.delete(0, 2)


def delete_the_last(log: Tampering) -> None:
    log.delete(SIZE - 1, SIZE)


def set_head_back(log: Tampering) -> None:
    log.move_head(590)


def touch_head(log: Tampering) -> None:
    log.run("UPDATE log_head SET recorded_at = recorded_at + interval '1 day'")


def drop_head(log: Tampering) -> None:
    log.run("DELETE FROM log_head")


def forge_far_away(log: Tampering) -> None:
    log.run(f"UPDATE events SET position = 1000000000000000 WHERE position = {SIZE}")
    log.run("UPDATE log_head SET position = 1000000000000000")


def double_in_a_child(log: Tampering) -> None:
    """Puts a copy beside an event where no key sees it, so that none of those that follow has its place."""
    log.run("CREATE TABLE child () INHERITS (events)")
    log.run("INSERT INTO child SELECT * FROM events WHERE position = 10")
    change_text_at(log, 400)


def put_before_the_first(log: Tampering) -> None:
    log.run("ALTER TABLE events DROP CONSTRAINT events_position_check")
    log.run(
        "INSERT INTO events SELECT -4, 'account-1', 1, type, data, metadata, recorded_at, salt, leaf_hash FROM events "
        "WHERE position = 1"
    )


def take_the_time_away(log: Tampering) -> None:
    log.run("ALTER TABLE events ALTER recorded_at DROP NOT NULL")
    log.run("UPDATE events SET recorded_at = NULL WHERE position = 100")


def let_functions_lie(log: Tampering) -> None:
    """Lets the database find another `sha256` first, which gives what is said now the digest of what was said."""
    log.run(
        "CREATE TABLE said AS SELECT salt || convert_to(data::text, 'UTF8') AS salted FROM events WHERE position = 99"
    )
    log.change(99, data='{"sender_id":1000,"text":"never said"}')
    log.run(
        "CREATE FUNCTION sha256(bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.sha256(CASE "
        "WHEN encode($1, ''escape'') LIKE ''%never said%'' THEN (SELECT salted FROM said) ELSE $1 END)'"
    )
    [(name,)] = tables.rows(log.connection, "SELECT current_database()")
    tables.run(log.connection, "ALTER DATABASE {} SET search_path = public, pg_catalog", name)


def empty_one(log: Tampering, position: int = 77) -> None:
    log.run("ALTER TABLE events DROP CONSTRAINT events_erasure_check")
    log.run(f"UPDATE events SET data_hash = sha256(salt || convert_to(data::text, 'UTF8')) WHERE position = {position}")
    log.change(position, data=None, salt=None)
    log.run(CONSTRAINT)


def erase_an_erasure(log: Tampering) -> None:
    """Lets an event say that it erased the one that said what was erased, and that as well."""
    empty_one(log, 200)
    log.change(SIZE, type="Erased", data=f'{{"positions":[{ERASED},200]}}')
    log.hash_anew(SIZE)


def name_a_later_one(log: Tampering) -> None:
    """Lets an event say that it erased one that came after it."""
    empty_one(log)
    log.change(60, type="Erased", data='{"positions":[77]}')
    log.hash_anew(60)


def bring_back(log: Tampering) -> None:
    log.run("ALTER TABLE events DROP CONSTRAINT events_erasure_check")
    log.change(ERASED, data='{"text":"back"}', salt=bytes(16), data_hash=None)
    log.hash_anew(ERASED)
    log.run(CONSTRAINT)


def hide_behind_a_digest(log: Tampering) -> None:
    """Leaves the digest of what was said beside other words, so that the leaf hash still fits to it."""
    log.run("ALTER TABLE events DROP CONSTRAINT events_erasure_check")
    log.run("UPDATE events SET data_hash = sha256(salt || convert_to(data::text, 'UTF8')) WHERE position = 88")
    log.change(88, data='{"text":"never said"}')


def shorten_salt(log: Tampering) -> None:
    """Moves a byte from the salt to the data, where it is white space: the hash of both is the same."""
    log.change(66, salt=b" " * 16)
    log.hash_anew(66)
    log.run("UPDATE events SET salt = substr(salt, 2), data = (' ' || data::text)::json WHERE position = 66")


def forget_command(log: Tampering) -> None:
    log.run("DELETE FROM commands WHERE first_position = 51")


def invent_command(log: Tampering) -> None:
    log.run("INSERT INTO commands VALUES ('invented', 5, 6)")


def change_tree(log: Tampering) -> None:
    log.run("UPDATE tree_hashes SET hash = sha256(hash) WHERE level = 1 AND index = 1")


def drop_from_tree(log: Tampering) -> None:
    log.run("DELETE FROM tree_hashes WHERE level = 1 AND index = 0")


def invent_in_tree(log: Tampering) -> None:
    log.run("INSERT INTO tree_hashes VALUES (1, 2, sha256('x'))")


def leave_tree_alone(log: Tampering) -> None:
    change_text_at(log, 280)


def invent_a_level(log: Tampering) -> None:
    log.run("INSERT INTO tree_hashes VALUES (30000, 0, sha256('x')), (-1, 0, sha256('x'))")


def invent_far_away_in_tree(log: Tampering) -> None:
    log.run("INSERT INTO tree_hashes VALUES (1, 9223372036854775807, sha256('x'))")


def other_signature(log: Tampering) -> None:
    note = OTHER_KEY.sign(Checkpoint("log.example", 300, bytes(32)).text())
    log.run("UPDATE checkpoints SET note = %(note)s WHERE size = 300", note=note)


def other_size(log: Tampering) -> None:
    log.run("UPDATE checkpoints SET note = (SELECT note FROM checkpoints WHERE size = 300) WHERE size = 600")


def other_key(log: Tampering) -> None:
    log.run("UPDATE log_key SET verifier_key = %(key)s", key=str(OTHER_KEY.verifier_key))


CONSTRAINT = (
    "ALTER TABLE events ADD CONSTRAINT events_erasure_check CHECK "
    "((data IS NULL) = (salt IS NULL) AND (data IS NULL) = (data_hash IS NOT NULL)) NOT VALID; "
    "ALTER TABLE events VALIDATE CONSTRAINT events_erasure_check"
)
SIGNED_300 = ("checkpoint", 1, 256)
TAMPERED: list[tuple[Callable[[Tampering], None], list[Where]]] = [
    (shift_version, [("version", 201, 201), ("version", 211, 211), ("tree", 1, 256), SIGNED_300]),
    (swap_versions, [("version", 101, 101), ("tree", 1, 256), SIGNED_300]),
    (set_clock_back, [("time", 301, 301), ("tree", 257, 512), ("checkpoint", 301, 512)]),
    (bury_in_antiquity, [("time", 1, 1), ("head", 601, 601)]),
    (delete_the_first, [("gap", 1, 2), ("version", 11, 11)]),
    (delete_the_last, [("gap", 601, 601)]),
    (set_head_back, [("head", 591, 601)]),
    (touch_head, [("head", 601, 601)]),
    (drop_head, [("head", None, None)]),
    (forge_far_away, [("leaf", 10**15, 10**15), ("gap", 601, 10**15 - 1)]),
    (double_in_a_child, [("guards", None, None), ("position", 10, 10)]),
    (put_before_the_first, [("guards", None, None), ("position", -4, -4)]),
    (take_the_time_away, [("guards", None, None), ("leaf", 100, 100), ("time", 100, 100)]),
    (let_functions_lie, [("leaf", 99, 99)]),
    (empty_one, [("erasure", 77, 77)]),
    (erase_an_erasure, [("erasure", 200, 200)]),
    (name_a_later_one, [("erasure", 77, 77), ("tree", 1, 256), SIGNED_300]),
    (bring_back, [("tree", 1, 256), SIGNED_300, ("erasure", ERASED, ERASED)]),
    (hide_behind_a_digest, [("guards", None, None), ("leaf", 88, 88), ("erasure", 88, 88)]),
    (shorten_salt, [("erasure", 66, 66), ("tree", 1, 256), SIGNED_300]),
    (forget_command, [("command", 51, 100)]),
    (invent_command, [("command", 5, 6)]),
    (change_tree, [("tree", 257, 512)]),
    (drop_from_tree, [("tree", 1, 256)]),
    (invent_in_tree, [("tree", 602, 768)]),
    (invent_a_level, [("tree", None, None), ("tree", None, None)]),
    (invent_far_away_in_tree, [("tree", 602, 2**63 - 1)]),
    (leave_tree_alone, [("tree", 257, 512), ("checkpoint", 1, 300)]),
    (other_signature, [("checkpoint", None, None)]),
    (other_size, [("checkpoint", None, None)]),
    (other_key, [("checkpoint", None, None)]),
]


@pytest.mark.parametrize(("tamper", "where"), TAMPERED, ids=lambda each: getattr(each, "__name__", ""))
def test_what_is_found_is_what_was_tampered_with(
    database: str, tamper: Callable[[Tampering], None], where: list[Where]
) -> None:
    with tampering(database) as log:
        tamper(log)

    assert sorted(found(database), key=str) == sorted(where, key=str)


# --- What guards the log ---------------------------------------------------------------------------------------------

NOTHING = "() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
UNGUARDED = [
    ("ALTER TABLE events DISABLE TRIGGER events_immutable", "events_immutable"),
    ("ALTER TABLE events ENABLE TRIGGER events_erasure", "events_erasure"),
    ("DROP TRIGGER checkpoints_immutable ON checkpoints", "checkpoints_immutable"),
    ("ALTER TABLE events DROP CONSTRAINT events_stream_version_key", "(stream, version)"),
    ("ALTER TABLE events DROP CONSTRAINT events_pkey", "(position)"),
    ("ALTER TABLE commands DROP CONSTRAINT commands_pkey", "(command_id)"),
    ("ALTER TABLE events DROP CONSTRAINT events_version_check", "events_version_check"),
    (f"CREATE OR REPLACE FUNCTION events_refuse_change{NOTHING}", "events_refuse_change"),
    ("ALTER FUNCTION events_check_erasure() RESET search_path", "events_check_erasure"),
    (
        f"CREATE SCHEMA other; CREATE FUNCTION other.events_refuse_change{NOTHING}; "
        "CREATE OR REPLACE TRIGGER events_immutable BEFORE DELETE OR TRUNCATE ON events "
        "FOR EACH STATEMENT EXECUTE FUNCTION other.events_refuse_change(); "
        "ALTER TABLE events ENABLE ALWAYS TRIGGER events_immutable",
        "the trigger events_immutable",
    ),
    (
        "ALTER TABLE events DROP CONSTRAINT events_position_check, ADD CONSTRAINT events_position_check CHECK (true)",
        "the constraint events_position_check",
    ),
    ("ALTER TABLE events ALTER leaf_hash DROP NOT NULL", "the column leaf_hash"),
    ("ALTER TABLE checkpoints ALTER signed_at TYPE timestamp(3) with time zone", "the column signed_at"),
    ("CREATE TABLE child () INHERITS (events)", "events as an ordinary table"),
    ("ALTER TABLE checkpoints ENABLE ROW LEVEL SECURITY", "checkpoints as an ordinary table"),
    ("CREATE RULE kept AS ON UPDATE TO log_key DO INSTEAD NOTHING", "log_key as an ordinary table"),
]


@pytest.mark.parametrize(("statement", "named"), UNGUARDED, ids=[named for _, named in UNGUARDED])
def test_a_guard_that_is_missing_is_named(database: str, statement: str, named: str) -> None:
    with tables.connect(database) as connection:
        tables.run(connection, statement)

    [finding] = inspect(database)

    assert (finding.check, finding.position) == ("guards", None)
    assert named in finding.what


# --- Checkpoints that were kept outside ------------------------------------------------------------------------------


def test_a_checkpoint_that_the_log_s_key_did_not_sign_counts_for_nothing(database: str, minutes: Minutes) -> None:
    forged = OTHER_KEY.sign(Checkpoint("log.example", 600, bytes(32)).text())

    for note in (forged, "no note", minutes.notes[600].replace("600", "599")):
        [finding] = inspect(database, outside={"mine.txt": note})
        assert (finding.check, finding.position) == ("checkpoint", None)
        assert "mine.txt" in finding.what

    with tampering(database) as log:
        log.run("DELETE FROM log_key; DELETE FROM checkpoints")
    [finding] = inspect(database, outside={"mine.txt": minutes.notes[600]})
    assert "no key" in finding.what
    assert list(inspect(database, outside={"mine.txt": minutes.notes[600]}, key=VKEY)) == []


def test_a_fork_by_the_key_s_own_holder_is_found(database: str) -> None:
    fork = KEY.sign(Checkpoint("log.example", 450, bytes(32)).text())

    [finding] = inspect(database, outside={"told to somebody": fork})

    assert (finding.check, finding.position, finding.through) == ("checkpoint", 301, 450)
    assert "told to somebody" in finding.what


def test_of_many_checkpoints_behind_a_forgery_one_is_told() -> None:
    leaves = [bytes([n]) * 32 for n in range(100)]
    honest = TreeInspection({})
    forged = TreeInspection({})
    checkpoints = [KeptCheckpoint(Checkpoint("o", size, tree.root(leaves[:size]))) for size in range(1, 101)]

    assert list(honest.follow(leaves, {}, checkpoints)) == []
    changed = [*leaves[:41], bytes(32), *leaves[42:]]
    assert [(finding.position, finding.through) for finding in forged.follow(changed, {}, checkpoints)] == [(42, 42)]
    assert (honest.agreeing, forged.agreeing) == (100, 41)


# --- The tree, and runs ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 300), max_size=6))
def test_the_tree_grows_to_the_same_root_however_its_leaves_come(pieces: list[int]) -> None:
    growing = GrowingTree()
    leaves: list[bytes] = []
    for piece in pieces:
        more = [(len(leaves) + n).to_bytes(32) for n in range(piece)]
        leaves += more
        complete = list(growing.grow(more))
        assert growing.root() == tree.root(leaves)
        for level, index, subtree in complete:
            assert level == 1
            assert subtree == tree.root(leaves[index * 256 : (index + 1) * 256])
    assert growing.size == len(leaves)


def test_complete_subtrees_of_all_levels_are_told_once() -> None:
    growing = GrowingTree()
    blocks = [n.to_bytes(32) for n in range(256)]

    told = [each for _ in range(257) for each in growing.grow(blocks)]

    block = tree.root(blocks)
    assert told[:256] == [(1, n, block) for n in range(256)]
    assert told[256] == (2, 0, tree.root([block] * 256))
    assert told[257:] == [(1, 256, block)]


@given(st.sets(st.integers(1, 50)))
def test_runs_hold_exactly_the_positions(positions: set[int]) -> None:
    found_runs = list(runs(sorted(positions)))

    assert [n for first, last in found_runs for n in range(first, last + 1)] == sorted(positions)
    assert all(later[0] > earlier[1] + 1 for earlier, later in itertools.pairwise(found_runs))


# --- Beside others, and when it is left ------------------------------------------------------------------------------


def test_it_sees_one_state_of_a_log_that_grows(database: str) -> None:
    async def append_while_inspecting() -> list[list[Finding]]:
        async with EventLog(database) as log:
            inspections = [
                asyncio.create_task(asyncio.to_thread(lambda: list(Inspection(database, range_size=64).findings())))
                for _ in range(3)
            ]
            while not all(task.done() for task in inspections):
                await log.append(StreamWrite("more", [said(1)], expected_version=None), context=CONTEXT)
            return await asyncio.gather(*inspections)

    assert asyncio.run(append_while_inspecting()) == [[], [], []]


def test_a_role_that_may_only_read_is_enough(database: str) -> None:
    with tables.connect(database) as connection:
        for statement in ("CREATE ROLE auditor", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO auditor"):
            tables.run(connection, statement)
        try:
            assert list(inspect(make_conninfo(database, options="-c role=auditor"))) == []
        finally:
            tables.run(connection, "DROP OWNED BY auditor; DROP ROLE auditor")


def test_an_empty_log_has_no_findings(cluster: str) -> None:
    database = make_conninfo(cluster, dbname="template_for_tests")

    inspection = Inspection(database)

    assert list(inspection.findings()) == []
    assert (inspection.events, inspection.root) == (0, tree.EMPTY_ROOT)


def test_who_leaves_early_leaves_no_connection_behind(database: str) -> None:
    with tampering(database) as log:
        change_text(log)

    with contextlib.closing(Inspection(database, range_size=10).findings()) as findings:
        assert next(findings).position == 123

    with tables.connect(database) as connection:
        name = conninfo_to_dict(database)["dbname"]
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %(name)s AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend' AND state <> 'idle'"
        )
        # A backend notices a moment later that its client is gone.
        until(lambda: tables.rows(connection, query, name=name) == [(0,)], "no connection is left")


def test_a_database_without_a_log_is_told_in_one_line(cluster: str) -> None:
    with pytest.raises(LogError, match="run `minutebook migrate`"):
        list(inspect(make_conninfo(cluster, dbname="template1")))


# --- The command -----------------------------------------------------------------------------------------------------


def verify(database: str, *options: str) -> int:
    return cli.run(["verify", "--database-url", database, *options], lambda _: pytest.fail("the server was run"))


def test_verify_says_what_it_verified_and_exits_with_0(
    database: str, minutes: Minutes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.txt").write_text(minutes.notes[300])
    (tmp_path / "kept.jsonl").write_text("".join(json.dumps({"note": note}) + "\n" for note in minutes.notes.values()))
    kept = [f"--checkpoint={tmp_path / name}" for name in ("kept.txt", "kept.jsonl")]

    assert verify(database, *kept, "--key", str(VKEY)) == 0

    [summary] = map(json.loads, capsys.readouterr().out.splitlines())
    assert (
        summary.items()
        >= {
            "events": SIZE,
            "findings": 0,
            "checkpoints": 5,
            "outside_checkpoints": 3,
            "key": str(VKEY),
            "key_is_from": "the command line",
        }.items()
    )
    with tables.connect(database) as connection:
        leaves = [leaf for (leaf,) in tables.rows(connection, "SELECT leaf_hash FROM events ORDER BY position")]
    assert summary["root"] == encode_base64(tree.root(leaves))


def test_verify_tells_findings_and_exits_with_1(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    with tampering(database) as log:
        change_text(log)

    assert verify(database) == 1
    finding, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert finding == {"position": 123, "through": 123, "check": "leaf", "what": finding["what"]}
    assert (summary["findings"], summary["key_is_from"]) == (1, "the database")

    assert verify(database, "--no-json") == 1
    shown = capsys.readouterr().out
    assert "123" in shown
    assert finding["what"] in " ".join(shown.split())


def test_verify_stops_where_enough_is_wrong_unless_all_is_wanted(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with tampering(database) as log:
        log.run("UPDATE events SET leaf_hash = sha256(leaf_hash) WHERE position % 2 = 0")

    assert verify(database) == 1
    told = capsys.readouterr()
    assert [json.loads(line).get("position") for line in told.out.splitlines()] == [*range(2, 42, 2), None]
    assert "--all" in told.err

    assert verify(database, "--all") == 1
    assert sum('"check":"leaf"' in line for line in capsys.readouterr().out.splitlines()) == 300


def test_verify_compares_the_read_models_where_that_is_wanted(
    io_loop: IOLoop, database: str, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    async def converse() -> None:
        alice = await commands.register("Alice", "Passw0rd!", "request 1")
        await commands.make_channel(alice, "den", "request 2")
        await commands.send_message(alice, "den", "as it was said", "request 3")

    on_loop(io_loop, converse)
    assert verify(database, "--models") == 0
    with tables.connect(database) as connection:
        tables.run(connection, "UPDATE messages SET text = 'as it was not'; DELETE FROM members")
    capsys.readouterr()

    assert verify(database) == 0, "the log is as it was"
    assert verify(database, "--models") == 1

    told = capsys.readouterr().out
    assert sorted(re.findall('"check":"models","what":"the row of ([a-z]+) ', told)) == ["members", "messages"]
    assert "as it was" not in told, "what rows hold is not told"


@pytest.mark.parametrize("options", [["--key", "nonsense"], ["--checkpoint", "no/such/file"]], ids=str)
def test_wrong_usage_of_verify_exits_with_2(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("dbname=none", *options) == 2
    assert capsys.readouterr().err.count("\n") == 1
