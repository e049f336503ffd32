"""Migrations: what they make is what the code describes, and running them again or at once does no harm."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.conninfo import make_conninfo

import eventstore.tables
import projections
import projections.schema
from chat.events import TokenRevoked
from eventstore.errors import LogUnavailable
from eventstore.events import Context, NewEvent, StreamWrite
from eventstore.log import EventLog
from eventstore.migrate import VERSIONS, alembic_config, migrate
from tests import tables

METADATA = [eventstore.tables.metadata, projections.schema.metadata]
REVISIONS = ["log_0001", "log_0002", "log_0003", "models_0001", "models_0002", "models_0003", "models_0004"]
HEADS = ["log_0003", "models_0004"]
_numbers = itertools.count(1)


@contextmanager
def blank_database(cluster: str) -> Iterator[str]:
    """A database in which nothing has been made; its connection string."""
    name = f"blank_{next(_numbers)}"
    with tables.connect(cluster) as connection:
        tables.run(connection, "CREATE DATABASE {}", name)
        try:
            yield make_conninfo(cluster, dbname=name)
        finally:
            tables.run(connection, "DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture
def blank(cluster: str) -> Iterator[str]:
    with blank_database(cluster) as conninfo:
        yield conninfo


@pytest.fixture
def described(cluster: str) -> Iterator[str]:
    """A database whose tables were made by SQLAlchemy from what the code describes, without any migration."""
    with blank_database(cluster) as conninfo:
        with engine_of(conninfo).begin() as connection:
            for metadata in METADATA:
                metadata.create_all(connection)
        yield conninfo


def engine_of(conninfo: str) -> sa.Engine:
    return sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), poolclass=sa.pool.NullPool
    )


def applied(conninfo: str) -> list[str]:
    """The revisions at which a database says that it is."""
    with tables.connect(conninfo) as connection:
        return sorted(name for [name] in tables.rows(connection, "SELECT version_num FROM alembic_version"))


# --- what they make ----------------------------------------------------------------------------------------------


def test_alembic_finds_nothing_to_add_or_to_drop(database: str) -> None:
    with engine_of(database).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": METADATA}
        )
        assert compare_metadata(context, METADATA) == []  # type: ignore[arg-type]


# What the comparison above is blind to, or may be: asked of the catalog, on both sides.
CATALOG = {
    "columns": """
        SELECT table_name, ordinal_position, column_name, data_type, collation_name, is_nullable, column_default,
               is_identity, is_generated
        FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2
    """,
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype::text, convalidated, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2
    """,
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
    "sequences": "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' ORDER BY 1",
}


def test_the_catalog_is_the_same_as_after_making_what_the_code_describes(database: str, described: str) -> None:
    with tables.connect(database) as migrated, tables.connect(described) as made:
        for query in CATALOG.values():
            found = [row for row in tables.rows(migrated, query) if row[0] != "alembic_version"]
            assert found == tables.rows(made, query)


def test_names_are_compared_byte_by_byte(database: str) -> None:
    with tables.connect(database) as connection:
        query = (
            "SELECT table_name || '.' || column_name FROM information_schema.columns "
            "WHERE table_schema = 'public' AND collation_name = 'C' ORDER BY 1"
        )
        assert [name for [name] in tables.rows(connection, query)] == [
            "accounts.safe_name",
            "channels.safe_name",
            "commands.command_id",
            "connections.connection_id",
            "connections.node_id",
            "deliveries.stream",
            "devices.device_digest",
            "discord_links.user_key",
            "discord_users.user_key",
            "events.stream",
            "events.type",
            "node_leases.node_id",
            "tokens.token_digest",
        ]


def test_the_log_s_triggers_are_there_and_fire_for_replicas_too(database: str) -> None:
    with tables.connect(database) as connection:
        query = (
            "SELECT tgrelid::regclass::text, tgname, tgenabled::text, pg_get_triggerdef(oid) "
            "FROM pg_trigger WHERE NOT tgisinternal"
        )
        refusing = "FOR EACH STATEMENT EXECUTE FUNCTION events_refuse_change()"
        assert tables.rows(connection, f"{query} ORDER BY 1, 2") == [
            (
                "checkpoints",
                "checkpoints_immutable",
                "A",
                "CREATE TRIGGER checkpoints_immutable BEFORE DELETE OR UPDATE OR TRUNCATE ON public.checkpoints "
                + refusing,
            ),
            (
                "events",
                "events_erasure",
                "A",
                "CREATE TRIGGER events_erasure AFTER UPDATE ON public.events REFERENCING OLD TABLE AS before "
                "NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION events_check_erasure()",
            ),
            (
                "events",
                "events_immutable",
                "A",
                f"CREATE TRIGGER events_immutable BEFORE DELETE OR TRUNCATE ON public.events {refusing}",
            ),
        ]


def test_the_log_begins_empty_with_one_head_row(database: str) -> None:
    with tables.connect(database) as connection:
        query = 'SELECT "only", position, extract(epoch FROM recorded_at)::bigint FROM log_head'
        assert tables.rows(connection, query) == [(True, 0, 0)]
        assert tables.rows(connection, "SELECT count(*) FROM events") == [(0,)]


REFUSED = [
    ("INSERT INTO log_head VALUES (true, 1, now())", "log_head_pkey"),
    ("INSERT INTO log_head VALUES (false, 1, now())", "log_head_only_check"),
    ("INSERT INTO events VALUES (0, 's', 1, 'T', '{{}}', '{{}}', now(), '', '')", "events_position_check"),
    ("INSERT INTO events VALUES (1, 's', 0, 'T', '{{}}', '{{}}', now(), '', '')", "events_version_check"),
    ("INSERT INTO events VALUES (1, 's', 1, 'T', '{{}}', '{{}}', now(), NULL, '')", "events_erasure_check"),
    ("INSERT INTO events VALUES (1, 's', 1, 'T', NULL, '{{}}', now(), '', '')", "events_erasure_check"),
]


def test_the_database_refuses_what_cannot_be(database: str) -> None:
    with tables.connect(database) as connection:
        for statement, constraint in REFUSED:
            with pytest.raises(psycopg.errors.IntegrityError) as refused:
                tables.run(connection, statement)
            assert refused.value.diag.constraint_name == constraint


# --- running them ------------------------------------------------------------------------------------------------


def test_the_first_run_applies_everything_and_the_second_nothing(blank: str) -> None:
    assert sorted(migrate(blank, [projections.MIGRATIONS])) == REVISIONS
    assert migrate(blank, [projections.MIGRATIONS]) == []
    assert applied(blank) == HEADS


def test_several_at_once_apply_each_revision_once(blank: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: migrate(blank, [projections.MIGRATIONS]), range(4)))

    assert [sorted(outcome) for outcome in outcomes if outcome] == [REVISIONS]
    assert applied(blank) == HEADS


@pytest.mark.gen_test
async def test_running_them_again_leaves_what_was_written_alone(blank: str) -> None:
    migrate(blank, [projections.MIGRATIONS])
    async with EventLog(blank, projections.ALL) as log:
        await log.append(StreamWrite("s", [NewEvent("Thing", b"{}")]), context=Context(None, "c"))
        before = await log.read()

        migrate(blank, [projections.MIGRATIONS])

        assert await log.read() == before
        assert (await log.append(StreamWrite("t", [NewEvent("Thing", b"{}")]), context=Context(None, "c"))) is not None


def test_the_log_can_do_without_the_read_models_and_get_them_later(blank: str) -> None:
    assert migrate(blank) == ["log_0001", "log_0002", "log_0003"]
    assert migrate(blank, [projections.MIGRATIONS]) == REVISIONS[3:]


@pytest.mark.gen_test
async def test_a_log_of_the_first_revisions_goes_on_under_the_newest(blank: str) -> None:
    config = alembic_config([VERSIONS, projections.MIGRATIONS])
    with engine_of(blank).connect() as connection:
        config.attributes["connection"] = connection
        for revision in ("log_0001", "models_0001"):
            command.upgrade(config, revision)
    assert applied(blank) == ["log_0001", "models_0001"]
    with tables.connect(blank) as connection:
        tables.run(connection, "INSERT INTO tokens VALUES (1000, 1, 'digest of alice'), (1001, 1, 'digest of bob')")

    assert sorted(migrate(blank, [projections.MIGRATIONS])) == [
        *("log_0002", "log_0003", "models_0002", "models_0003", "models_0004")
    ]

    async with EventLog(blank, projections.ALL) as log:
        revoked = TokenRevoked(1000, 2).recorded_form()
        await log.append(StreamWrite("token-1000", [revoked]), context=Context(None, "c"))
    with tables.connect(blank) as connection:
        found = tables.rows(connection, "SELECT * FROM tokens ORDER BY account_id")
        assert found == [(1000, 2, None), (1001, 1, "digest of bob")]


def test_a_database_that_cannot_be_reached_is_one_clear_error(cluster: str) -> None:
    with pytest.raises(LogUnavailable, match="cannot be reached"):
        migrate(make_conninfo(cluster, dbname="there_is_no_such_database"))


def test_a_migration_that_fails_leaves_nothing_half_done(blank: str) -> None:
    with tables.connect(blank) as connection:
        # Stands in the way of the last table of the log's first revision.
        tables.run(connection, "CREATE TABLE commands ()")
        with pytest.raises(sa.exc.ProgrammingError, match="already exists"):
            migrate(blank)
        query = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
        assert [name for [name] in tables.rows(connection, query)] == ["commands"]

        tables.run(connection, "DROP TABLE commands")
        assert migrate(blank) == ["log_0001", "log_0002", "log_0003"]


def modules() -> Sequence[ModuleType]:
    scripts = ScriptDirectory.from_config(alembic_config([VERSIONS, projections.MIGRATIONS]))
    return [script.module for script in scripts.walk_revisions()]


def test_there_is_no_way_back() -> None:
    found = modules()

    assert sorted(module.revision for module in found) == REVISIONS
    assert not any(hasattr(module, "downgrade") for module in found)


def test_each_place_has_a_branch_of_its_own() -> None:
    scripts = ScriptDirectory.from_config(alembic_config([VERSIONS, projections.MIGRATIONS]))
    branches = {script.revision: set(script.branch_labels) for script in scripts.walk_revisions()}

    # Only the first of each place names it; those behind it follow.
    assert branches == {
        "log_0001": {"log"},
        "log_0002": {"log"},
        "log_0003": {"log"},
        "models_0001": {"models"},
        "models_0002": {"models"},
        "models_0003": {"models"},
        "models_0004": {"models"},
    }
