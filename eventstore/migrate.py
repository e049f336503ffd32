"""Brings a database's tables up to date with Alembic, under a lock, so that several processes may start at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psycopg
import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from eventstore.errors import LogError, LogUnavailable

HERE = Path(__file__).parent / "migrations"
VERSIONS = HERE / "versions"

# Any number that no other user of the database takes; advisory locks are per database.
_LOCK = 0x6D696E75_7465
_log = structlog.get_logger(__name__)


def migrate(conninfo: str, locations: Sequence[Path] = ()) -> list[str]:
    """Runs the migrations of the log and those found in `locations`; returns the revisions that it applied.

    Raises `LogUnavailable` when the database cannot be reached, and `LogError` when this role may not do it. Each
    revision runs in a transaction of its own.
    """
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), poolclass=sa.pool.NullPool
    )
    config = alembic_config([VERSIONS, *locations])
    try:
        with engine.connect() as guard:
            guard.execute(sa.select(sa.func.pg_advisory_lock(_LOCK)))
            with engine.connect() as connection:
                before = set(_current(connection, config))
                config.attributes["connection"] = connection
                command.upgrade(config, "heads")
                applied = [name for name in _current(connection, config) if name not in before]
    except sa.exc.OperationalError as error:
        raise LogUnavailable(f"the database cannot be reached: {error.orig}") from error
    except sa.exc.ProgrammingError as error:
        if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            raise
        raise LogError(
            "this role may not bring the database's tables up to date: run `minutebook migrate` as their owner, and "
            f"then `minutebook grant` for this role ({error.orig.diag.message_primary})"
        ) from error
    if applied:
        _log.info("the database is migrated", revisions=applied)
    return applied


def alembic_config(locations: Sequence[Path]) -> Config:
    """Alembic's configuration, made here since it depends on where the packages are installed."""
    config = Config()
    config.set_main_option("script_location", _escaped(HERE))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(_escaped(path) for path in locations))
    return config


def _current(connection: sa.Connection, config: Config) -> list[str]:
    """All revisions that the database has, oldest first."""
    heads = MigrationContext.configure(connection).get_current_heads()
    connection.rollback()
    if not heads:
        return []
    scripts = ScriptDirectory.from_config(config)
    revisions = [script.revision for script in scripts.iterate_revisions(heads, "base")]
    return revisions[::-1]


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")
