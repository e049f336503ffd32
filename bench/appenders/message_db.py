"""message-db: a server function that writes one message, called through a pool of 10 connections.

Written anew from its published description (docs.eventide-project.org, "Server Functions" and "Anatomy of the
Message Store"), not copied: table and indexes as described there, the global position from a sequence, a
transaction-level advisory lock on the hash of the stream's category, the stream's version compared with the expected
one. All messages are of one category, as a chat's are, so their writers take turns.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import psycopg

from bench.appenders import Appender, message
from bench.appenders.pooled import measure_statement
from bench.load import Load, Measured
from eventstore.ids import new_id

_SCHEMA = """
    CREATE FUNCTION category(stream_name varchar) RETURNS varchar LANGUAGE sql IMMUTABLE AS
        $$ SELECT split_part(stream_name, '-', 1) $$;

    CREATE FUNCTION hash_64(value varchar) RETURNS bigint LANGUAGE sql IMMUTABLE AS
        $$ SELECT ('x' || left(md5(value), 16))::bit(64)::bigint $$;

    CREATE TABLE messages (
        global_position bigserial PRIMARY KEY,
        position bigint NOT NULL,
        time timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'utc'),
        stream_name text NOT NULL,
        type text NOT NULL,
        data jsonb,
        metadata jsonb,
        id uuid NOT NULL DEFAULT gen_random_uuid()
    );
    CREATE UNIQUE INDEX messages_id ON messages (id);
    CREATE UNIQUE INDEX messages_stream ON messages (stream_name, position);
    CREATE INDEX messages_category
        ON messages (category(stream_name), global_position, category(metadata ->> 'correlationStreamName'));

    CREATE FUNCTION write_message(
        id varchar, stream_name varchar, type varchar, data jsonb,
        metadata jsonb DEFAULT NULL, expected_version bigint DEFAULT NULL
    ) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        version bigint;
    BEGIN
        PERFORM pg_advisory_xact_lock(hash_64(category(write_message.stream_name)));
        SELECT coalesce(max(m.position), -1) INTO version
            FROM messages m WHERE m.stream_name = write_message.stream_name;
        IF expected_version IS NOT NULL AND expected_version <> version THEN
            RAISE EXCEPTION 'Wrong expected version: % (Stream: %, Stream Version: %)',
                expected_version, stream_name, version;
        END IF;
        INSERT INTO messages (id, stream_name, position, type, data, metadata)
            VALUES (write_message.id::uuid, write_message.stream_name, version + 1, write_message.type,
                    write_message.data, write_message.metadata);
        RETURN version + 1;
    END $$;
"""
_WRITE = "SELECT write_message($1::varchar, $2::varchar, $3::varchar, $4::text::jsonb, $5::text::jsonb, $6::bigint)"


def _prepare(conninfo: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(_SCHEMA)


def _parameters() -> list[object]:
    data, metadata = message.data().decode(), message.metadata().decode()
    return [str(uuid.uuid4()), f"message-{new_id()}", "MessageSent", data, metadata, -1]


def _measure(conninfo: str, load: Load, ready: Callable[[], None]) -> Measured:
    return measure_statement(conninfo, load, ready, _WRITE, _parameters)


APPENDER = Appender("message-db write_message", _prepare, _measure)
