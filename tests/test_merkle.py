"""Leaf hashes: what the database computed at the append, anyone can compute again from an event and its salt."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.ioloop import IOLoop

from eventstore import canonical, merkle
from eventstore.events import Context, NewEvent, RecordedEvent, StreamWrite
from eventstore.ids import new_id
from eventstore.log import EventLog
from tests import tables
from tests.conftest import on_loop
from tests.test_canonical import OBJECTS, TEXTS

NAMES = st.from_regex(merkle.NAME_PATTERN, fullmatch=True)
CONTEXTS = st.builds(Context, actor=st.none() | st.integers(0, 2**63 - 1), correlation_id=TEXTS)


@dataclass(frozen=True)
class Leaf:
    """An event as the log reads it, and beside it what only the table shows."""

    event: RecordedEvent
    salt: bytes
    leaf_hash: bytes


async def leaves(log: EventLog, database: str, after: int = 0) -> list[Leaf]:
    """The events behind a position with their salts and hashes."""
    with tables.connect(database) as connection:
        stored = {
            position: (salt, leaf_hash)
            for position, salt, leaf_hash in tables.rows(connection, "SELECT position, salt, leaf_hash FROM events")
        }
    return [Leaf(event, *stored[event.position]) for event in await log.read(after)]


def recomputed(leaf: Leaf) -> bytes:
    """The leaf's hash by the house's own Python."""
    event = leaf.event
    assert event.data is not None
    return merkle.leaf_hash(
        merkle.entry(
            position=event.position,
            stream=event.stream,
            version=event.version,
            event_type=event.type,
            metadata=event.metadata,
            recorded_at=event.recorded_at,
            data_hash=merkle.data_hash(leaf.salt, event.data),
        )
    )


def recomputed_by_definition(leaf: Leaf) -> bytes:
    """The leaf's hash from nothing but the standard library and the words of the definition."""
    event = leaf.event
    assert event.data is not None
    moment = event.recorded_at.astimezone(UTC)
    header = {
        "data_hash": sha256(leaf.salt + event.data).hexdigest(),
        "metadata": json.loads(event.metadata),
        "position": event.position,
        "recorded_at": moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06d}Z",
        "stream": event.stream,
        "type": event.type,
        "version": event.version,
    }
    return sha256(b"\x00" + as_canonical(header)).digest()


def as_canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_the_database_s_leaf_hashes_are_those_of_python_for_any_data_and_metadata(
    io_loop: IOLoop, bare_log: EventLog, database: str
) -> None:
    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.tuples(NAMES, NAMES, OBJECTS, CONTEXTS), min_size=1, max_size=4))
    def check(given_events: list[tuple[str, str, dict[str, Any], Context]]) -> None:
        async def append_and_read() -> list[Leaf]:
            head = await bare_log.head()
            for stream, kind, data, context in given_events:
                write = StreamWrite(stream, [NewEvent(kind, canonical.encode(data))], expected_version=None)
                await bare_log.append(write, context=context, command_id=new_id())
            return await leaves(bare_log, database, head)

        found: list[Leaf] = on_loop(io_loop, append_and_read)
        assert len(found) == len(given_events)
        for leaf, (stream, kind, data, context) in zip(found, given_events, strict=True):
            assert (leaf.event.stream, leaf.event.type) == (stream, kind)
            assert leaf.event.data == as_canonical(data)
            metadata = json.loads(leaf.event.metadata)
            assert (metadata["actor"], metadata["correlation_id"]) == (context.actor, context.correlation_id)
            assert leaf.leaf_hash == recomputed(leaf) == recomputed_by_definition(leaf)

    check()


@pytest.mark.gen_test
async def test_the_database_s_own_settings_do_not_show_in_a_leaf_hash(database: str) -> None:
    with tables.connect(database) as connection:
        [[name]] = tables.rows(connection, "SELECT current_database()")
        for setting in ("timezone = 'Asia/Kathmandu'", "datestyle = 'SQL, DMY'", "bytea_output = 'escape'"):
            tables.run(connection, f"ALTER DATABASE {{}} SET {setting}", name)

    async with EventLog(database) as log:
        await log.append(StreamWrite("s", [NewEvent("T", b'{"a":1}')]), context=Context(None, "c"))
        [leaf] = await leaves(log, database)

    assert leaf.leaf_hash == recomputed(leaf) == recomputed_by_definition(leaf)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "moment", ["2126-03-01 00:00:00+00", "2126-03-01 23:59:59.000001+00", "9999-12-31 23:59:59.9+00"]
)
async def test_moments_of_any_precision_are_written_with_six_digits(
    bare_log: EventLog, database: str, moment: str
) -> None:
    # A moment to come wins over the clock, so this is the one that will be recorded.
    with tables.connect(database) as connection:
        tables.run(connection, f"UPDATE log_head SET recorded_at = '{moment}'")

    await bare_log.append(StreamWrite("s", [NewEvent("T", b"{}")]), context=Context(None, "c"))

    [leaf] = await leaves(bare_log, database)
    assert leaf.event.recorded_at == datetime.fromisoformat(moment)
    assert leaf.leaf_hash == recomputed(leaf) == recomputed_by_definition(leaf)


@pytest.mark.gen_test
async def test_every_event_has_a_salt_of_its_own(bare_log: EventLog, database: str) -> None:
    same = [NewEvent("T", b'{"a":1}')] * 3
    await asyncio.gather(*(bare_log.append(StreamWrite(f"s-{n}", same), context=Context(None, "c")) for n in range(20)))

    found = await leaves(bare_log, database)

    assert len(found) == 60
    assert {len(leaf.salt) for leaf in found} == {merkle.SALT_BYTES}
    assert len({leaf.salt for leaf in found}) == 60
    assert len({leaf.leaf_hash for leaf in found}) == 60


MOMENTS = st.datetimes(min_value=datetime(1970, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))  # noqa: DTZ001
EVENTS = st.builds(
    RecordedEvent,
    position=st.integers(1, 2**63 - 1),
    stream=NAMES,
    version=st.integers(1, 2**63 - 1),
    type=NAMES,
    data=OBJECTS.map(as_canonical),
    metadata=OBJECTS.map(as_canonical),
    recorded_at=MOMENTS,
)


@settings(deadline=None, max_examples=100)
@given(EVENTS, st.binary(min_size=16, max_size=16))
def test_an_entry_is_canonical_json_itself(event: RecordedEvent, salt: bytes) -> None:
    entry = merkle.entry(
        position=event.position,
        stream=event.stream,
        version=event.version,
        event_type=event.type,
        metadata=event.metadata,
        recorded_at=event.recorded_at,
        data_hash=merkle.data_hash(salt, event.data or b""),
    )

    assert as_canonical(json.loads(entry)) == entry
    assert recomputed_by_definition(Leaf(event, salt, b"")) == merkle.leaf_hash(entry)


def test_a_known_entry_has_the_known_hash() -> None:
    entry = merkle.entry(
        position=7,
        stream="message-1",
        version=1,
        event_type="MessageSent",
        metadata=b'{"actor":1000}',
        recorded_at=datetime(2026, 1, 31, 13, 0, tzinfo=timezone(timedelta(hours=1))),
        data_hash=merkle.data_hash(b"0123456789abcdef", b'{"text":"hi"}'),
    )

    assert entry == (
        b'{"data_hash":"%s","metadata":{"actor":1000},"position":7,"recorded_at":"2026-01-31T12:00:00.000000Z",'
        b'"stream":"message-1","type":"MessageSent","version":1}'
        % sha256(b'0123456789abcdef{"text":"hi"}').hexdigest().encode()
    )
    assert merkle.leaf_hash(entry) == sha256(b"\0" + entry).digest()


@settings(deadline=None, max_examples=100)
@given(MOMENTS, st.integers(-14 * 60, 14 * 60))
def test_a_moment_is_written_the_same_from_every_time_zone(moment: datetime, minutes: int) -> None:
    try:
        elsewhere = moment.astimezone(timezone(timedelta(minutes=minutes)))
    except OverflowError:
        return  # Beyond the years that Python has.

    assert merkle.rfc3339(elsewhere) == merkle.rfc3339(moment)
    assert datetime.fromisoformat(merkle.rfc3339(moment)) == moment
