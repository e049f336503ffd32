"""The `eventsourcing` library, over a smaller log, whose rate stands for a larger one.

Its ProjectionRunner with a projection as its users write it, an event and its position in one transaction; its
recorder alone, read in bulk, decoded by us and copied into a table with the same indexes, which is what one would do
to make it fast; and that reading without the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import psycopg

from bench.appenders.eventsourcing_library import NAME, environment
from bench.history import History
from bench.rebuilders import Rebuilder, WrongResult
from chat.events import MessageSent

if TYPE_CHECKING:
    from eventsourcing.persistence import ApplicationRecorder

PROJECTED = 3_000
READ = 100_000
_PAGE = 5_000
_SCHEMA = "library"
_EVENTS = f"{_SCHEMA}.chat_events"  # named after the application
_TOPIC = "bench.rebuilders.library_projection:MessageSent"
_PATIENCE = 300.0  # seconds

_FILL = f"""
    INSERT INTO {_EVENTS} (originator_id, originator_version, topic, state)
    SELECT gen_random_uuid(), 1, %s, convert_to(data::text, 'UTF8')
    FROM events WHERE type = 'MessageSent' ORDER BY position LIMIT %s
"""
_COPIED = f"""
    CREATE TABLE {_SCHEMA}.copied (
        message_id bigint NOT NULL, channel_id bigint NOT NULL, sender_id bigint NOT NULL, text text NOT NULL
    )
"""
_INDEXES = f"""
    ALTER TABLE {_SCHEMA}.copied ADD PRIMARY KEY (message_id);
    CREATE INDEX ON {_SCHEMA}.copied (channel_id, message_id);
    CREATE INDEX ON {_SCHEMA}.copied (sender_id, message_id)
"""
_COPY = f"COPY {_SCHEMA}.copied FROM STDIN (FORMAT binary)"


def _environment(conninfo: str) -> dict[str, str]:
    return {**environment(conninfo), "POSTGRES_SCHEMA": _SCHEMA}


def _prepare(conninfo: str, count: int) -> None:
    from bench.rebuilders.library_projection import Chat  # needs what may not be installed

    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {_SCHEMA} CASCADE".encode())
        connection.execute(f"CREATE SCHEMA {_SCHEMA}".encode())
        with Chat(_environment(conninfo)):
            pass  # makes its tables
        connection.execute(_FILL.encode(), [_TOPIC, count])
        connection.execute(f"VACUUM (ANALYZE) {_EVENTS}".encode())
        connection.execute(_COPIED.encode())


def _prepare_runner(conninfo: str) -> None:
    _prepare(conninfo, PROJECTED)


def _prepare_reading(conninfo: str) -> None:
    _prepare(conninfo, READ)


def _run(conninfo: str) -> int:
    from eventsourcing.projection import ProjectionRunner

    from bench.rebuilders.library_projection import Chat, Messages, MessagesProjection

    with ProjectionRunner(
        application_class=Chat,
        projection_class=MessagesProjection,
        view_class=Messages,
        env=_environment(conninfo),
    ) as runner:
        last = runner.app.recorder.max_notification_id()
        runner.wait(last, timeout=_PATIENCE)
    return last or 0


def _read(conninfo: str) -> int:
    from bench.rebuilders.library_projection import Chat

    with Chat(_environment(conninfo)) as app, psycopg.connect(conninfo, autocommit=True) as target:
        count = 0
        with target.cursor() as cursor, cursor.copy(_COPY.encode()) as copy:
            copy.set_types(["int8", "int8", "int8", "text"])
            for row in _messages(app.recorder):
                copy.write_row(row)
                count += 1
        target.execute(_INDEXES.encode())
        return count


def _messages(recorder: ApplicationRecorder) -> Iterator[tuple[object, ...]]:
    decode = msgspec.json.Decoder(MessageSent).decode
    position: int | None = None
    while page := recorder.select_notifications(position, _PAGE, inclusive_of_start=False):
        for notification in page:
            sent = decode(notification.state)
            yield notification.id, sent.channel_id, sent.sender_id, sent.text
        position = page[-1].id


def _read_only(conninfo: str) -> int:
    from bench.rebuilders.library_projection import Chat

    with Chat(_environment(conninfo)) as app:
        return sum(1 for _ in _messages(app.recorder))


def _check_runner(conninfo: str, _: History) -> None:
    from bench.rebuilders.library_projection import TABLE

    _check(conninfo, f"{_SCHEMA}.{TABLE}")


def _check_reading(conninfo: str, _: History) -> None:
    _check(conninfo, f"{_SCHEMA}.copied")


def _check_recorder(conninfo: str, _: History) -> None:
    """Nothing is left to be checked: what it read it has counted."""


def _check(conninfo: str, table: str) -> None:
    with psycopg.connect(conninfo) as connection:
        found = connection.execute(f"SELECT count(*) - (SELECT count(*) FROM {_EVENTS}) FROM {table}".encode())
        if found.fetchone() != (0,):
            raise WrongResult(f"{table} has not as many rows as {_EVENTS}")


RUNNER = Rebuilder(f"{NAME}, ProjectionRunner", _prepare_runner, _run, _check_runner, ("eventsourcing",))
READING = Rebuilder(f"{NAME}, recorder and COPY", _prepare_reading, _read, _check_reading, ("eventsourcing",))
RECORDER = Rebuilder(f"{NAME}, recorder read", _prepare_reading, _read_only, _check_recorder, ("eventsourcing",))
