"""Fixtures: a real Postgres for every test that touches one, and the house built on it.

One private cluster serves a test run (a worker of it); its template database is migrated once, and each test gets a
copy. The fixtures are synchronous and drive pytest-tornado's `io_loop`, so tests are plain `async def` functions
under `@pytest.mark.gen_test`.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tornado.ioloop import IOLoop
from tornado.platform.asyncio import AsyncIOLoop
from tornado.web import Application

import loops
import projections
from audit import cli
from chat.bridging import Bridging
from chat.commands import Commands
from chat.connections import Connections
from chat.passwords import PasswordHasher
from eventstore.embedded import EmbeddedPostgres
from eventstore.log import EventLog
from eventstore.migrate import migrate
from eventstore.transparency.published import Published
from handlers.app import make_app
from handlers.limits import FailureLimit, SlidingWindow
from handlers.services import Services
from projections.models import ReadModels
from projections.reading import Reading
from tests.servers import Server
from tests.tables import Outage

T = TypeVar("T")

SECRET = b"a secret for the tests"
OPERATOR = "Operator"
CI_KEY = "the key of the tests"
NODE = "test-node"
_MEMORY = Path("/dev/shm")
_ROOM = 4 << 30  # bytes, for all workers of a run
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what takes longest first: begun last, it would go on when the other workers have nothing left to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from looking through all that was imported and collected, again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _logging_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line that a test runs in this process does not set up the logging of all tests behind it."""
    monkeypatch.setattr(cli, "configure_logs", lambda _level: None)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A private Postgres for the whole run; the connection string of its maintenance database."""
    with tempfile.TemporaryDirectory(prefix="minutebook-tests-", dir=roomy_memory()) as folder:
        # Nothing here outlives the run, and no test of a crash uses this cluster: so it need not wait for the disk.
        postgres = EmbeddedPostgres(
            Path(folder),
            parameters={"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"},
        )
        conninfo = postgres.start()
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("CREATE DATABASE template_for_tests")
        migrate(make_conninfo(conninfo, dbname="template_for_tests"), [projections.MIGRATIONS])
        yield conninfo
        postgres.stop()


def roomy_memory() -> Path | None:
    """Where files are in memory, and a database copied in a quarter of the time; None where there is no room for it."""
    return _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM else None


def own_database(cluster: str) -> Iterator[str]:
    """The body of a fixture: a migrated, empty database of its own; its connection string."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template_for_tests STRATEGY FILE_COPY')
    yield make_conninfo(cluster, dbname=name)
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database(cluster: str) -> Iterator[str]:
    """A migrated, empty database for one test; its connection string."""
    yield from own_database(cluster)


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """A loop of its own for each test.

    pytest-tornado's own fixture asks for the current loop first, which makes one that nobody closes.
    """
    loop = AsyncIOLoop(make_current=False, asyncio_loop=loops.new_loop())
    asyncio.set_event_loop(loop.asyncio_loop)
    yield loop
    # What was closed at last is so only after another turn or two.
    loop.asyncio_loop.run_until_complete(asyncio.sleep(0.001))
    asyncio.set_event_loop(None)
    loop.close(all_fds=True)


Enter = Callable[[AbstractAsyncContextManager[T]], T]


@pytest.fixture
def enter(io_loop: IOLoop) -> Iterator[Callable[[AbstractAsyncContextManager[object]], object]]:
    """Enters async context managers on the test's loop, and leaves them in reverse order after it."""
    entered: list[AbstractAsyncContextManager[object]] = []

    def do(manager: AbstractAsyncContextManager[object]) -> object:
        value = io_loop.run_sync(manager.__aenter__)
        entered.append(manager)
        return value

    yield do
    for manager in reversed(entered):
        io_loop.run_sync(lambda manager=manager: manager.__aexit__(None, None, None))


def on_loop(io_loop: IOLoop, call: Callable[[], Awaitable[T]]) -> T:
    """The result of an async call, for synchronous tests and fixtures."""
    result: T = io_loop.run_sync(call)
    return result


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Returns once the condition holds, which is looked at every few milliseconds; raises TimeoutError if never."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - any condition, of those who tell nobody when they change
            await asyncio.sleep(0.005)


@pytest.fixture
def log(database: str, enter: Enter[EventLog]) -> EventLog:
    """An open log with all projections."""
    return enter(EventLog(database, projections.ALL))


@pytest.fixture
def bare_log(database: str, enter: Enter[EventLog]) -> EventLog:
    """An open log without projections: any type of event will do."""
    return enter(EventLog(database))


@pytest.fixture
def outage(cluster: str, database: str) -> Outage:
    """Ends the connections to the test's database, and keeps new ones out."""
    return Outage(cluster, database)


@pytest.fixture
def passwords() -> Iterator[PasswordHasher]:
    """A hasher at the lowest cost."""
    hasher = PasswordHasher(cost=4)
    yield hasher
    hasher.close()


@pytest.fixture
def models(log: EventLog) -> ReadModels:
    """The read models of the log."""
    return ReadModels(log)


@pytest.fixture
def commands(io_loop: IOLoop, log: EventLog, models: ReadModels, passwords: PasswordHasher) -> Commands:
    """The commands on the log, with what exists from the start."""
    made = Commands(log, models, passwords, SECRET, operators=[OPERATOR])
    on_loop(io_loop, made.prepare)
    return made


@pytest.fixture
def connections(log: EventLog, models: ReadModels) -> Connections:
    """The commands about connections, on behalf of a node."""
    return Connections(log, models, SECRET, NODE)


@pytest.fixture
def services(commands: Commands, connections: Connections, models: ReadModels, log: EventLog) -> Services:
    """What the handlers call, without limits."""
    return make_services(commands, connections, models, log)


NO_CONNECTIONS = {"open": 0, "opened": 0, "closed": {}, "delivered": 0, "delivered_bytes": 0}


def make_services(
    commands: Commands,
    connections: Connections,
    models: ReadModels,
    log: EventLog,
    discord_channel: int | None = None,
) -> Services:
    """What the handlers call, without limits, real-time connections and a restart under way.

    With a channel of Discord it takes what is to go there; nobody delivers it.
    """
    bridging = Bridging(
        log, models, commands, SECRET, default_channel=discord_channel, configured=discord_channel is not None
    )
    return Services(
        commands=commands,
        bridging=bridging,
        connections=connections,
        reading=Reading(models),
        models=models,
        ready=lambda: log.ready,
        log_head=log.head,
        published=Published(log.reader),
        messages_per_account=SlidingWindow(0, seconds=10),
        failed_logins=FailureLimit(SlidingWindow(0, seconds=60)),
        restarting=lambda: False,
        connection_statistics=lambda: NO_CONNECTIONS,
        ci_key=CI_KEY,
    )


@pytest.fixture
def app(services: Services) -> Application:
    """The HTTP application, which pytest-tornado's `http_server` serves."""
    return make_app(services)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts real server processes, by default on one and the same folder; the settings are keywords."""
    with ExitStack() as stack:

        def start(data_dir: str = "data", **settings: Any) -> Server:
            return stack.enter_context(Server(tmp_path / data_dir, **settings))

        yield start
