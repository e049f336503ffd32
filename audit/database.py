"""The database that the settings mean, for as long as it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from eventstore.embedded import EmbeddedPostgres
from eventstore.errors import LogError
from settings import Settings


@contextmanager
def database(settings: Settings, *, make: bool = False) -> Iterator[str]:
    """The connection string of the settings' database.

    The embedded Postgres is started if no server runs it, and then stopped at the end. If there is none, it is made
    with `make`; else raises `LogError`: a tool that looks at a log makes no new one.
    """
    if settings.database_url is not None:
        yield settings.database_url
        return
    if not make and not (settings.data_dir / "postgres").is_dir():
        raise LogError(
            f"there is no log in {settings.data_dir}: give --data-dir or --database-url, or begin one with `serve`"
        )
    postgres = EmbeddedPostgres(settings.data_dir)
    conninfo = postgres.start()
    try:
        yield conninfo
    finally:
        postgres.stop()
