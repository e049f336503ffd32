"""The `eventsourcing` library, in its default mode: threads that share its Postgres recorder.

The recorder of an application is what `Application.save` ends in. Calling it directly spares the library its
aggregates, its mapper and its transcoder. It takes its settings from the environment; ours differ from the
defaults only in the pool, which gets 10 connections at once like everybody's.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from psycopg.conninfo import conninfo_to_dict

from bench.appenders import POOL, Appender, message
from bench.closed_loop import run_threads
from bench.load import Load, Measured

NAME = "eventsourcing library"


def environment(conninfo: str) -> dict[str, str]:
    """The library's settings for this database."""
    parts = conninfo_to_dict(conninfo)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(parts["dbname"]),
        "POSTGRES_HOST": str(parts["host"]),
        "POSTGRES_PORT": str(parts.get("port", 5432)),
        "POSTGRES_USER": str(parts["user"]),
        "POSTGRES_PASSWORD": str(parts.get("password", "")),
        "POSTGRES_POOL_SIZE": str(POOL),
        "POSTGRES_MAX_OVERFLOW": "0",
    }


def _prepare(conninfo: str) -> None:
    from eventsourcing.persistence import InfrastructureFactory  # may not be installed
    from eventsourcing.utils import Environment

    with InfrastructureFactory.construct(Environment(env=environment(conninfo))) as factory:
        factory.application_recorder()


def _measure(conninfo: str, load: Load, ready: Callable[[], None]) -> Measured:
    from eventsourcing.persistence import InfrastructureFactory, StoredEvent
    from eventsourcing.utils import Environment

    with InfrastructureFactory.construct(Environment(env=environment(conninfo))) as factory:
        recorder = factory.application_recorder()

        def append() -> None:
            event = StoredEvent(
                originator_id=uuid4(), originator_version=1, topic="chat.events:MessageSent", state=message.data()
            )
            recorder.insert_events([event])

        append()  # opens the pool
        ready()
        return run_threads(append, load)


APPENDER = Appender(NAME, _prepare, _measure, packages=("eventsourcing",))
