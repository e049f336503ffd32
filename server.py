"""The composition root: reads the settings, builds the parts, runs them as named tasks, stops them in reverse order.

The only file that sees everything, and nobody imports it. `python server.py`, `minutebook serve` and `make run` are
the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import gc
import itertools
import os
import resource
import secrets
import signal
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from socket import socket
from typing import IO, Any, cast

import structlog
from tornado.netutil import bind_sockets

import loops
import projections
from audit import cli
from audit.command import CommandFailed
from audit.database import database
from audit.logs import configure_logs
from bot.fokabot import FokaBot
from chat.bridging import Bridging
from chat.commands import Commands, utc_now
from chat.connections import Connections
from chat.moderation import Moderation
from chat.nodes import close_ghosts, watch_others
from chat.passwords import PasswordHasher
from eventstore.embedded import EmbeddedPostgres, make_data_dir
from eventstore.errors import LogError, LogUnavailable
from eventstore.ids import new_id
from eventstore.leadership import Leadership
from eventstore.leases import Leases
from eventstore.log import EventLog
from eventstore.migrate import migrate
from eventstore.reader import Reader
from eventstore.rebuild import discard_leftovers
from eventstore.transparency.checkpoints import Checkpointer, Checkpoints
from eventstore.transparency.keys import KEY_FILE, kept_key
from eventstore.transparency.notes import BadKey, SigningKey
from eventstore.transparency.published import Published
from handlers.app import make_app
from handlers.limits import FailureLimit, SlidingWindow
from handlers.neighbours import neighbours, session_prefix
from handlers.services import Services
from handlers.serving import make_server
from handlers.sockets.audit_stream import AuditStream
from handlers.sockets.chat import ChatSockets, Options
from http1.handover import Arrivals, Departures, Neighbours
from http1.proxies import Proxies
from http1.server import HttpServer, Parser, tls_context
from projections.models import ReadModels
from projections.reading import Reading
from realtime.server import Server as SocketServer
from settings import Settings
from workers import Parent, Ways, WorkerFailed, Workers, assignments

Parts = dict[str, Callable[[], Coroutine[Any, Any, None]]]

_log = structlog.get_logger("server")

# How long requests in flight may take to end once the server was told to stop. All in all an end takes less than 10 s.
_GRACE_SECONDS = 3.0
# And giving the lease back.
_RELEASE_SECONDS = 0.5
_BACKLOG = 1024
# Whoever copies the published log shall not keep those who chat from reading.
_PUBLIC_READERS = 2
_PATH = "/socket.io/"
_LISTENING_SECONDS = 5.0
# A server whose parent was killed ends at once, and the next one may be started even sooner.
_ENDING_SECONDS = 5.0
# New objects after which the collector looks for cycles among them. At Python's 700 that was 26 times in 1,000 messages
# (6 us of each), to look through what requests in flight hold and to find hardly any. So many take some 2.5 ms.
# Our requests leave no cycles, refused ones neither; where some do, so many objects wait, with what they hold.
_YOUNG_OBJECTS = 10_000
# What this program is called with to be a worker, with its descriptor; nobody but the parent can say so.
_PROGRAM, _WORKER = str(Path(__file__).absolute()), "worker"
# Connections to the embedded Postgres: what one process takes at most, and what others (tools, the parent) are left.
_CONNECTIONS_OF_WORKER, _CONNECTIONS_OF_OTHERS = 20, 40


def main() -> None:
    """The console script `minutebook`."""
    sys.exit(cli.run(sys.argv[1:], run, run_bot))


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT; raises what kept the server from starting or going on."""
    if settings.workers == 1:
        loops.run(serve(settings))
    else:
        # The parent's subprocesses want asyncio's own loop, and it has nothing to do that would have to be fast.
        asyncio.run(serve_by_workers(settings))


def run_bot(settings: Settings) -> None:
    """Runs the bridge to Discord alone until SIGTERM or SIGINT; raises what kept it from starting or going on."""
    if settings.discord_token is None:
        raise CommandFailed("there is no bot to run: give its discord_token")
    with database(settings) as conninfo:
        loops.run(bridge_alone(settings, conninfo))


async def bridge_alone(settings: Settings, conninfo: str) -> None:
    """Builds what the bridge needs, and runs it until a signal comes."""
    async with AsyncExitStack() as stack:
        stopping = stack.enter_context(_stop_signals())
        secret = settings.secret.encode() if settings.secret else _servers_secret(settings.data_dir / "secret")
        log = await stack.enter_async_context(EventLog(conninfo, projections.ALL))
        passwords = PasswordHasher(settings.bcrypt_cost)
        stack.callback(passwords.close)
        models = ReadModels(log)
        commands = Commands(log, models, passwords, secret, settings.operators)
        await commands.prepare()
        bridging = _bridging(settings, log, models, commands, secret)
        parts = {"log": log.watch} | _discord(settings, conninfo, log, models, bridging)
        _log.info("the bridge to Discord runs - Ctrl-C or SIGTERM stops it", pid=os.getpid())
        await _run_until(stopping, parts, _nothing_to_wind_down)


def work(descriptor: int) -> None:
    """Serves as a worker, which the parent speaks to by this descriptor."""
    parent = Parent(descriptor)
    settings = Settings.parse(parent.assignment.settings)
    configure_logs(settings.log_level)
    structlog.contextvars.bind_contextvars(worker=parent.assignment.number)
    try:
        loops.run(serve(settings, parent))
    except (CommandFailed, LogError, OSError) as error:
        parent.failed(str(error))
        sys.exit(1)


async def serve_by_workers(settings: Settings) -> None:
    """Does what is done once for all workers, runs them until a signal comes, and stops them."""
    if settings.http_parser != "httptools":
        raise CommandFailed("workers: more than one need the http_parser httptools")
    if sys.platform != "linux":
        raise CommandFailed("workers: more than one need Linux")
    async with AsyncExitStack() as stack:
        stopping = stack.enter_context(_stop_signals())
        parts: Parts = {}
        lock, sockets, conninfo = await _prepare(settings, stack, parts)
        async with Reader(conninfo, size=1) as reader:
            await _log_key(settings, Checkpoints(reader))
        ways = Ways.between(settings.workers)
        stack.callback(ways.close)
        workers = Workers(
            [sys.executable, _PROGRAM, _WORKER],
            assignments(settings.texts(), conninfo, sockets, ways, lock),
            on_ready=lambda: _say_hello(settings, sockets[0]),
            on_restart=stopping.set,
        )
        parts["workers"] = workers.run

        async def wind_down() -> None:
            # Whoever comes now must not wait for a worker that will not come.
            _close(sockets)
            await workers.stop()

        try:
            await _run_until(stopping, parts, wind_down)
        except WorkerFailed as error:
            raise CommandFailed(str(error)) from None


async def _prepare(settings: Settings, stack: AsyncExitStack, parts: Parts) -> tuple[int, list[list[socket]], str]:
    """What comes first, whether this process serves or its workers do.

    The data folder's lock (as a descriptor), the listening sockets of each worker, and how to connect to a database
    that is ready for them.
    """
    if settings.database_url is None:
        make_data_dir(settings.data_dir)
    lock = stack.enter_context(_only_server_in(settings.data_dir))
    _raise_descriptor_limit()
    _tls(settings)
    sockets = stack.enter_context(_listening_sockets(settings))
    _secret(settings)
    conninfo = settings.database_url
    if conninfo is None:
        most = max(100, settings.workers * _CONNECTIONS_OF_WORKER + _CONNECTIONS_OF_OTHERS)
        postgres = EmbeddedPostgres(settings.data_dir, parameters={"max_connections": str(most)})
        stack.push_async_callback(asyncio.to_thread, postgres.stop)
        conninfo = await asyncio.to_thread(postgres.start)
        parts["postgres"] = postgres.watch
    await asyncio.to_thread(migrate, conninfo, [projections.MIGRATIONS])
    await asyncio.to_thread(discard_leftovers, conninfo)
    return lock, sockets, conninfo


async def serve(settings: Settings, parent: Parent | None = None) -> None:
    """Builds the parts, runs them until a signal comes or one of them fails, and stops them in reverse order.

    As one worker of several, with what its parent has prepared.
    """
    async with AsyncExitStack() as stack:
        stopping = stack.enter_context(_stop_signals())
        parts: Parts = {}
        if parent is None:
            _, [sockets], conninfo = await _prepare(settings, stack, parts)
        else:
            parent.watch(stopping.set)
            stack.callback(parent.unwatch)
            sockets, conninfo = _inherited(parent), parent.assignment.conninfo
        worker = None if parent is None else parent.assignment.number
        tls = _tls(settings)
        secret = _secret(settings)
        log = await stack.enter_async_context(EventLog(conninfo, projections.ALL))
        parts["log"] = log.watch

        passwords = PasswordHasher(settings.bcrypt_cost)
        stack.callback(passwords.close)
        models = ReadModels(log)
        commands = Commands(log, models, passwords, secret, settings.operators)
        await commands.prepare()
        moderation = Moderation(log, models, settings.operators)
        bridging = _bridging(settings, log, models, commands, secret)
        parts |= _discord(settings, conninfo, log, models, bridging)
        bot = FokaBot(log, models, commands, moderation, draw=lambda most: secrets.randbelow(most) + 1, clock=utc_now)
        parts["fokabot"] = bot.run

        # The first worker is the node that a server without workers was, and may become again.
        node_id = _kept_node_id(settings.data_dir / (f"node-{worker}" if worker else "node"))
        connections = Connections(log, models, secret, node_id)
        leases = Leases(conninfo, node_id)
        stack.push_async_callback(leases.close)
        await close_ghosts(node_id, connections)
        await leases.renew()
        stack.push_async_callback(_release, leases)
        parts["lease"] = leases.run
        parts["lost nodes"] = lambda: watch_others(leases, connections, models.presence.nodes)

        realtime = _socket_server(settings, worker)
        options = Options(secret, settings.recovery_window, settings.channel_event)
        on_restart = functools.partial(_restart, stopping, parent)
        chat = ChatSockets(realtime, log, commands, connections, models, options, on_restart)
        AuditStream(realtime, log, settings.audit_key)
        await chat.start()
        parts["fan-out"] = chat.fanout.run
        parts["presence"] = chat.registry.run

        public = await stack.enter_async_context(Reader(conninfo, size=_PUBLIC_READERS))
        if (key := await _log_key(settings, Checkpoints(public))) is not None:
            parts["checkpoints"] = Checkpointer(conninfo, key, settings.checkpoint_interval).run

        services = Services(
            commands=commands,
            bridging=bridging,
            connections=connections,
            reading=Reading(models),
            models=models,
            ready=lambda: log.ready,
            log_head=log.head,
            published=Published(public),
            messages_per_account=SlidingWindow(settings.rate_limit, seconds=10),
            failed_logins=FailureLimit(SlidingWindow(settings.login_limit, seconds=60)),
            restarting=lambda: chat.is_restarting,
            connection_statistics=lambda: realtime.statistics,
            worker=worker,
            ci_key=settings.ci_key,
        )
        chat.serve(services)
        server = make_server(
            make_app(services, realtime.routes(_PATH)),
            realtime.door(_PATH),
            parser=cast(Parser, settings.http_parser),
            tls=tls,
            proxies=Proxies(settings.trusted_proxies),
            neighbours=None if parent is None else _neighbours(parent, stack),
        )
        # Whoever reads the line that the server listens finds it ready; without LISTEN it would only be slower.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LISTENING_SECONDS):
                await log.listening()
        server.add_sockets(sockets)
        # What stands by now stays: the collector need not look through it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS)
        if parent is None:
            _say_hello(settings, sockets)
        else:
            parent.ready()
        await _run_until(stopping, parts, lambda: _wind_down(server, services, chat))


def _secret(settings: Settings) -> bytes:
    return settings.secret.encode() if settings.secret else _kept_secret(settings.data_dir / "secret")


def _restart(stopping: asyncio.Event, parent: Parent | None) -> None:
    """The system was asked to restart."""
    if parent is not None:
        parent.restart()
    stopping.set()


def _inherited(parent: Parent) -> list[socket]:
    """The listening sockets of a worker."""
    return [socket(fileno=descriptor) for descriptor in parent.assignment.listening]


def _neighbours(parent: Parent, stack: AsyncExitStack) -> Neighbours:
    """The other workers on this machine."""
    others = {number: Departures(socket(fileno=way)) for number, way in parent.assignment.departures.items()}
    for departures in others.values():
        stack.callback(departures.close)
    return neighbours(Arrivals(socket(fileno=parent.assignment.arrivals)), others, _PATH)


def _bridging(settings: Settings, log: EventLog, models: ReadModels, commands: Commands, secret: bytes) -> Bridging:
    configured = settings.discord_token is not None or settings.discord_channel is not None
    return Bridging(log, models, commands, secret, default_channel=settings.discord_channel, configured=configured)


def _discord(settings: Settings, conninfo: str, log: EventLog, models: ReadModels, bridging: Bridging) -> Parts:
    """The part that bridges to Discord; none without a token."""
    if settings.discord_token is None:
        if settings.discord_channel is not None:
            _log.warning("what is to go to Discord waits for a `minutebook bot`: this server has no discord_token")
        return {}
    # discord.py takes long to import, which whoever has no use for it need not wait for.
    from bot.bridge import bridge

    leadership = Leadership(conninfo, bridge.LEADERSHIP, bridge.NAME)
    give_up = timedelta(seconds=settings.discord_give_up)
    part = bridge.Bridge(
        log, models, bridging, leadership, token=settings.discord_token, api=settings.discord_api, give_up=give_up
    )
    return {bridge.NAME: part.run}


def _socket_server(settings: Settings, worker: int | None) -> SocketServer:
    return SocketServer(
        ping_interval=settings.ping_interval,
        ping_timeout=settings.ping_timeout,
        max_payload=settings.max_payload,
        max_backlog=settings.max_backlog,
        cors_origin=settings.cors_origin,
        session_prefix="" if worker is None else session_prefix(worker),
    )


async def _run_until(
    stopping: asyncio.Event,
    parts: Parts,
    wind_down: Callable[[], Awaitable[None]],
) -> None:
    """Runs named tasks until `stopping` is set, then winds down while they still run; raises what ended one of them."""
    tasks = [asyncio.create_task(part(), name=name) for name, part in parts.items()]
    stop = asyncio.create_task(stopping.wait(), name="stop signal")
    try:
        done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        _log.info("stopping")
        await wind_down()
        for task in done - {stop}:
            _log.error("a part of the server ended", part=task.get_name())
            task.result()
    finally:
        for task in (stop, *tasks):
            task.cancel()
        await asyncio.gather(stop, *tasks, return_exceptions=True)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """What connections are encrypted by, if they are."""
    if settings.tls_certificate is None:
        if settings.tls_key is not None:
            raise CommandFailed("tls_key: there is no tls_certificate that it belongs to")
        return None
    try:
        return tls_context(settings.tls_certificate, settings.tls_key)
    except OSError as error:
        raise CommandFailed(f"cannot serve HTTPS by {settings.tls_certificate}: {error.strerror or error}") from error


async def _nothing_to_wind_down() -> None:
    """What a bridge has begun it finds again when it is the bridge the next time."""


async def _wind_down(server: HttpServer, services: Services, chat: ChatSockets) -> None:
    """Tells the listeners, takes no more connections, lets what is in flight end, and closes what is left."""
    try:
        async with asyncio.timeout(_GRACE_SECONDS):
            await chat.announce_stop()
            server.stop()
            await services.in_flight.ended()
    except TimeoutError:
        _log.warning("requests in flight took too long and were cut off")
    await chat.stop()
    await server.close_all_connections()


async def _release(leases: Leases) -> None:
    """Gives the lease back; without the database it lapses by itself."""
    with contextlib.suppress(LogUnavailable, TimeoutError):
        async with asyncio.timeout(_RELEASE_SECONDS):
            await leases.release()


def _raise_descriptor_limit() -> None:
    """Lets the process have as many connections as the system grants it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _say_hello(settings: Settings, sockets: Sequence[socket]) -> None:
    address, port, *_ = sockets[0].getsockname()
    host = f"[{address}]" if ":" in address else address
    scheme = "http" if settings.tls_certificate is None else "https"
    _log.info(
        f"Minutebook listens on {scheme}://{host}:{port} - Ctrl-C or SIGTERM stops it",
        data=str(settings.data_dir.absolute()),
        database="external" if settings.database_url else "embedded",
        pid=os.getpid(),
    )


@contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        stopping.set()
        for number in signals:
            loop.remove_signal_handler(number)
            # Of Ctrl-C Python would make an exception, and end in order all the same, for as long as that takes.
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield stopping
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _only_server_in(data_dir: Path) -> Iterator[int]:
    """Holds the data folder for this server alone, by a descriptor; the lock ends with the last process that has it."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data_dir / "server.lock").open("a+") as lock:
        deadline = time.monotonic() + _ENDING_SECONDS
        while not _locked(lock):
            lock.seek(0)
            holder = lock.read().strip()
            if _runs(holder) or time.monotonic() > deadline:
                raise CommandFailed(
                    f"another server (pid {holder}) runs on {data_dir}: stop it, or give another --data-dir"
                )
            # It was killed, and its workers are about to end.
            time.sleep(0.05)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield lock.fileno()


def _locked(file: IO[str]) -> bool:
    """Whether the file could be locked for this process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _runs(pid: str) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _listening_sockets(settings: Settings) -> Iterator[list[list[socket]]]:
    """The sockets of the address and port, those of each worker, bound before anything slow begins."""
    try:
        sockets = _bound(settings)
    except OSError as error:
        raise CommandFailed(
            f"cannot listen on {settings.address} port {settings.port}: {error.strerror or error}"
        ) from error
    try:
        yield sockets
    finally:
        _close(sockets)


def _bound(settings: Settings) -> list[list[socket]]:
    first = bind_sockets(settings.port, settings.address, backlog=_BACKLOG)
    if settings.workers == 1:
        return [first]
    # These only show that the port is free, or find one: sockets that share a port would join those of anybody else
    # that shares it, and nobody would notice.
    port = first[0].getsockname()[1]
    _close([first])
    return [bind_sockets(port, settings.address, backlog=_BACKLOG, reuse_port=True) for _ in range(settings.workers)]


def _close(sockets: Iterable[Iterable[socket]]) -> None:
    for listening in itertools.chain.from_iterable(sockets):
        listening.close()


def _kept_node_id(path: Path) -> str:
    """The name of this node, made at the first start: by it the next life finds what the last one left open."""
    if not path.exists():
        _write_whole(path, new_id())
    return path.read_text().strip()


def _kept_secret(path: Path) -> bytes:
    """The secret in the file, made at the first start; readable for the server's user alone."""
    if not path.exists():
        _write_whole(path, secrets.token_hex(32))
    secret = path.read_bytes().strip()
    if len(secret) < 16:
        raise CommandFailed(f"{path} does not hold a secret: put back the file that this log was made with")
    return secret


def _servers_secret(path: Path) -> bytes:
    """The secret in the file, which a server has made."""
    if not path.exists():
        raise CommandFailed(f"{path} is not there: give the --data-dir or the --secret of the servers of this log")
    return _kept_secret(path)


async def _log_key(settings: Settings, checkpoints: Checkpoints) -> SigningKey | None:
    """The key that signs the log's checkpoints, made at the first start of its first server; None if others have it."""
    try:
        key = kept_key(settings.log_key, settings.data_dir)
    except BadKey as error:
        raise CommandFailed(str(error)) from None
    if key is None and (others := await checkpoints.verifier_key()) is not None:
        _log.warning("this server signs no checkpoints: it does not have the log's key", key=str(others))
        return None
    if key is None:
        key = SigningKey.generate(settings.origin)
        _write_whole(settings.data_dir / KEY_FILE, str(key))
    if settings.origin not in (key.name, Settings.origin):
        _log.warning("the log's key names another origin, which it keeps", origin=key.name)
    return key


def _write_whole(path: Path, text: str) -> None:
    """Writes a new file, whole or not at all, and on the disk before anything is made that belongs to it."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    folder = os.open(path.parent, os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == _WORKER:
        work(int(sys.argv[2]))
        sys.exit()
    # `python server.py --port 1` means what `minutebook serve --port 1` means.
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.argv.insert(1, "serve")
    main()
