"""Roles: what `grant` gives is enough for a server and an auditor, and not enough to change the log."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import projections
from audit import cli
from eventstore.errors import LogError
from eventstore.grants import grant
from eventstore.migrate import migrate
from eventstore.rebuild import rebuild
from tests import tables
from tests.servers import Server, until

_numbers = itertools.count(1)
MODELS = tables.READ_MODELS


@pytest.fixture
def roles(cluster: str, database: str) -> Iterator[Callable[..., str]]:
    """Makes roles, which are gone again after the test; `how` is what CREATE ROLE says of them."""
    made: list[str] = []
    with tables.connect(cluster) as connection:

        def make(how: str = "") -> str:
            made.append(f"role {next(_numbers)}")
            tables.run(connection, f"CREATE ROLE {{}} {how}", made[-1])
            return made[-1]

        yield make
        with tables.connect(database) as in_database:
            for role in made:
                tables.run(in_database, "DROP OWNED BY {}", role)
        for role in made:
            tables.run(connection, "DROP ROLE {}", role)


def acting_as(database: str, role: str) -> str:
    """A connection string by which one has this role's rights; who may connect at all is not what is tested."""
    return make_conninfo(database, options=f"-c role={role.replace(' ', chr(92) + ' ')}")


@contextlib.contextmanager
def acting(database: str, role: str) -> Iterator[tables.Connection]:
    with tables.connect(acting_as(database, role)) as connection:
        assert tables.rows(connection, "SELECT current_user") == [(role,)]
        yield connection


def test_a_whole_server_runs_as_the_granted_role(
    roles: Callable[..., str], database: str, start_server: Callable[..., Server]
) -> None:
    role, reader = roles(), roles()
    assert cli.run(["grant", role, "--reader", reader, "--database-url", database], lambda _: None) == 0

    server = start_server(database_url=acting_as(database, role), checkpoint_interval=1)
    with server.client() as client, acting(database, reader) as auditor:
        token, other = client.enrol("alice"), client.enrol("bob")
        client.must("makechannel", token=token, name="den")
        client.must("addusertochannel", token=token, name="den", username="bob")
        client.must("sendmessage", token=token, channel="den", message="hello")
        client.must("senddm", token=other, username="alice", message="!roll")
        [message] = client.must("readmessagesfromchannel", token=other, name="den", count=1)["messages"]
        client.must("deletemessage", token=token, message_id=message["message_id"])
        client.must("generatetoken", username="alice", password="Passw0rd!")
        assert client.ask("GET", "/readyz").status == 200
        until(lambda: tables.rows(auditor, "SELECT 1 FROM checkpoints"), "a checkpoint is signed")
        [(events,)] = tables.rows(auditor, "SELECT count(*) FROM events")
        assert events > 10
    assert server.stop() == 0
    assert [line for line in server.log if line["level"] in ("warning", "error")] == []


@pytest.mark.parametrize("command", ["replay", "erase --message 1 --reason x --yes", "grant another"])
def test_what_needs_the_owner_says_so_in_one_line(
    command: str, roles: Callable[..., str], database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    role = roles()
    grant(database, MODELS, role)

    assert cli.run([*command.split(), "--database-url", acting_as(database, role)], lambda _: None) == 1

    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "must connect as the role that owns the log's tables" in told.err


CHANGES = [
    "UPDATE events SET data = '{}'",
    "UPDATE events SET data = NULL, salt = NULL, data_hash = ''",
    "DELETE FROM events",
    "TRUNCATE events",
    "UPDATE checkpoints SET note = ''",
    "DELETE FROM checkpoints",
    "TRUNCATE checkpoints",
    "UPDATE log_key SET verifier_key = ''",
    "UPDATE tree_hashes SET hash = ''",
    "UPDATE commands SET first_position = 1",
    "DELETE FROM log_head",
    "ALTER TABLE events DISABLE TRIGGER ALL",
    "ALTER TABLE events DISABLE TRIGGER events_immutable",
    "DROP TRIGGER events_erasure ON events",
    "DROP TABLE events",
    "CREATE OR REPLACE FUNCTION events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "CREATE TRIGGER another BEFORE INSERT ON events EXECUTE FUNCTION events_refuse_change()",
    "CREATE TABLE minutes (text text)",
    "SET session_replication_role = replica",
    "UPDATE alembic_version SET version_num = 'log_0001'",
]


def test_the_granted_role_cannot_change_the_log_whatever_it_tries(roles: Callable[..., str], database: str) -> None:
    role, reader = roles(), roles()
    with tables.connect(database) as connection:
        tables.run(connection, "GRANT ALL ON events, checkpoints, alembic_version TO {}", role)
    grant(database, MODELS, role, reader)

    for each in (role, reader):
        with acting(database, each) as connection:
            for statement in CHANGES:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement.encode())
    with acting(database, reader) as connection:
        for table in ("messages", "events", "log_head"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                tables.run(connection, "INSERT INTO {} SELECT * FROM {}", table, table)
        tables.run(connection, "CREATE TEMPORARY TABLE past (LIKE messages)")


def test_who_could_change_the_log_all_the_same_is_refused_and_gets_nothing(
    roles: Callable[..., str], database: str
) -> None:
    ordinary, superuser, maker, by_name = roles(), roles("SUPERUSER"), roles("CREATEROLE"), roles()
    with tables.connect(database) as connection:
        [(owner,)] = tables.rows(connection, "SELECT current_user")
        member = roles()
        tables.run(connection, "GRANT {} TO {}", owner, member)
        # What a member does not inherit is had by SET ROLE.
        under_superuser, under_maker, on_machine = roles("NOINHERIT"), roles(), roles()
        tables.run(connection, "GRANT {} TO {}", superuser, under_superuser)
        tables.run(connection, "GRANT {} TO {}", maker, under_maker)
        tables.run(connection, "GRANT pg_execute_server_program TO {}", on_machine)
        group, columns = roles(), roles()
        tables.run(connection, "GRANT UPDATE ON events TO {}", group)
        tables.run(connection, "GRANT UPDATE (data) ON events TO {}", columns)
        tables.run(connection, "GRANT {} TO {}", group, by_name)
        not_inherited, by_column = roles("NOINHERIT"), roles()
        tables.run(connection, "GRANT {} TO {}", group, not_inherited)
        tables.run(connection, "GRANT {} TO {}", columns, by_column)

        for role, why in (
            (superuser, "could become who does"),
            (maker, "could become who does"),
            (member, "could become who does"),
            (owner, "could become who does"),
            (under_superuser, "could become who does"),
            (under_maker, "could become who does"),
            (on_machine, "could become who does"),
            (by_name, "has the right to UPDATE events all the same"),
            (not_inherited, "has the right to UPDATE events all the same"),
            (by_column, "has the right to UPDATE events all the same"),
            ("nobody", "there is no role nobody"),
        ):
            with pytest.raises(LogError, match=why):
                grant(database, MODELS, role)
            with pytest.raises(LogError, match=why):
                grant(database, MODELS, ordinary, role)
        assert tables.rows(
            connection,
            "SELECT count(*) FROM pg_class, aclexplode(relacl) AS g WHERE relname = 'messages' AND g.grantee IN "
            "(SELECT oid FROM pg_roles WHERE rolname LIKE 'role %%') AND grantee <> relowner",
        ) == [(0,)]


def test_rights_stay_when_the_read_models_are_rebuilt(roles: Callable[..., str], database: str) -> None:
    role, reader = roles(), roles()
    grant(database, MODELS, role, reader)
    rights = (
        "SELECT relname, g.grantee::regrole::text, g.privilege_type FROM pg_class, aclexplode(relacl) AS g "
        "WHERE relname = ANY(%(tables)s) ORDER BY 1, 2, 3"
    )
    with tables.connect(database) as connection:
        before = tables.rows(connection, rights, tables=MODELS)
        assert {("messages", f'"{role}"', "INSERT"), ("dms", f'"{reader}"', "SELECT")} <= set(before)

        rebuild(database, projections.ALL)

        assert tables.rows(connection, rights, tables=MODELS) == before


def test_a_role_that_may_not_migrate_is_told_so_in_one_line(
    roles: Callable[..., str], database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    role = roles()
    grant(database, MODELS, role)
    assert migrate(acting_as(database, role), [projections.MIGRATIONS]) == []
    with tables.connect(database) as connection:
        connection.execute("DELETE FROM alembic_version WHERE version_num LIKE 'models_%'")
        connection.execute("INSERT INTO alembic_version VALUES ('models_0002')")

    with pytest.raises(LogError, match="run `minutebook migrate` as their owner"):
        migrate(acting_as(database, role), [projections.MIGRATIONS])

    assert cli.run(["grant", role], lambda _: None) == 1
    told = capsys.readouterr().err
    assert told.startswith("minutebook: the embedded Postgres has no other role")
    assert told.count("\n") == 1


def test_one_role_for_the_server_and_for_auditors_is_wrong_usage(
    roles: Callable[..., str], database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    role = roles()

    assert cli.run(["grant", role, "--reader", role, "--database-url", database], lambda _: None) == 2

    assert "give two roles" in capsys.readouterr().err
