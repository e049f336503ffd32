"""Processes of ours that need not import everything first: forked from one that has.

To start Python and import the server takes a second of a core, and the tests start some hundred processes. So each run
(or worker of it) has one process that imports the server, and then forks itself for whoever asks. What it forks is a
process like any other: it has its own arguments, environment, working folder and standard streams, runs what the
console script runs, ends as Python ends, and can be sent signals and be killed. Only a process that begins with
another program (`setpriv`, a shell, another Python) has to be started in the ordinary way, and some tests do so on
purpose.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_MOST = 1 << 17  # bytes of a request: above all the environment
_starting = threading.Lock()


class Forked:
    """A process that was forked for us; what is of use here of `subprocess.Popen`.

    `stdout` and `stderr` are descriptors. Standard input is empty.
    """

    def __init__(
        self, arguments: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], stdout: int, stderr: int
    ) -> None:
        self.args = ["minutebook", *map(str, arguments)]
        self.returncode: int | Any = None  # of the types that `subprocess.Popen` gives it
        self._turn = threading.Lock()
        self._told, tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"argv": self.args, "cwd": str(cwd), "env": dict(env)}).encode()
        with tells:
            socket.send_fds(_forker(), [request], [tells.fileno(), stdout, stderr])
        self.pid = self._hear()

    def _hear(self) -> int:
        told = self._told.recv(64)
        if not told:
            raise RuntimeError("the process that forks has ended")
        return int(told)

    def wait(self, timeout: float | None = None) -> int:
        """Waits until it has ended; its exit code, or the negative number of the signal that ended it.

        Raises `subprocess.TimeoutExpired` after `timeout` seconds.
        """
        with self._turn:
            self._listen(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return int(self.returncode)

    def poll(self) -> int | None:
        """As `wait`, but None if it still runs."""
        # Another thread may be waiting, which will tell us.
        if self._turn.acquire(blocking=False):
            try:
                self._listen(0)
            finally:
                self._turn.release()
        return None if self.returncode is None else int(self.returncode)

    def _listen(self, timeout: float | None) -> None:
        if self.returncode is None:
            self._told.settimeout(timeout)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                self.returncode = self._hear()
                self._told.close()

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it without a chance to do anything about it."""
        self.send_signal(signal.SIGKILL)


def _forker() -> socket.socket:
    with _starting:
        return _started_forker()


@cache
def _started_forker() -> socket.socket:
    """Where this process's forker is asked; it ends with this process, and with `ours` in any case."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        forker = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    atexit.register(forker.wait, timeout=10)
    atexit.register(ours.close)
    return ours


# --- the process that forks ---------------------------------------------------------------------------------------


class _Forker:
    """Forks for each request, and tells those who asked the process's id and later how it ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, socket.socket] = {}
        self._ended, wakes = socket.socketpair()
        wakes.setblocking(False)
        self._wakes = wakes
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._ended, selectors.EVENT_READ)

    def run(self) -> bool:
        """Returns whether this is a new process, which shall begin; False when nobody can ask any more."""
        # The handler only makes Python write to the socket, and the terminal's Ctrl-C is not meant for us.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wakes.fileno())
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._ended:
                    self._ended.recv(4096)
                    self._reap()
                    continue
                request, descriptors, _, _ = socket.recv_fds(self._control, _MOST, 3)
                if not request:
                    return False
                if self._fork(json.loads(request), descriptors):
                    return True

    def _reap(self) -> None:
        for pid, tells in list(self._children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._children[pid]
                _tell(tells, os.waitstatus_to_exitcode(status))
                tells.close()

    def _fork(self, request: dict[str, object], descriptors: list[int]) -> bool:
        pid = os.fork()
        if pid == 0:
            self._forget()
            _become(request, descriptors)
            return True
        teller, *streams = descriptors
        for stream in streams:
            os.close(stream)
        self._children[pid] = socket.socket(fileno=teller)
        _tell(self._children[pid], pid)
        return False

    def _forget(self) -> None:
        """Gives up, in a new process, what belongs to the one that forks."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._selector.close()
        for each in (self._control, self._ended, self._wakes, *self._children.values()):
            each.close()


def _tell(whom: socket.socket, number: int) -> None:
    # Whoever asked may be gone.
    with contextlib.suppress(OSError):
        whom.send(str(number).encode())


def _become(request: dict[str, object], descriptors: list[int]) -> None:
    """Gives a new process what it was asked to have."""
    argv, cwd, env = request["argv"], request["cwd"], request["env"]
    assert isinstance(argv, list)
    assert isinstance(env, dict)
    _, stdout, stderr = descriptors
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for descriptor in descriptors:
        os.close(descriptor)
    os.chdir(str(cwd))
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = argv


def main() -> None:
    """Forks for whoever has the other end of the socket that the argument names."""
    import server

    forker = _Forker(socket.socket(fileno=int(sys.argv[1])))
    # What was imported is common to all, and need not be looked through, or copied, by any of them.
    gc.collect()
    gc.freeze()
    if forker.run():
        server.main()


if __name__ == "__main__":
    main()
