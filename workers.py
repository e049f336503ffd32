"""Several processes that serve one port: the parent, which starts and watches them, and what a worker knows of it.

The parent serves nobody. It makes what the workers share (listening sockets, the ways between them, the lock on the
data folder) and keeps its copies open, so that a worker that has died finds what waits for it in its next life.

Between the parent and each worker is a pair of sockets, whose lines are the whole protocol:

    parent to worker   its assignment, one line of JSON; later, perhaps, `stop`
    worker to parent   `ready` when it serves; `restart` when the system was asked to restart; `failed`, and why
                       in JSON, when it cannot serve

Invariants: secrets go by this pair alone, not by a command line or an environment. A worker whose parent has gone ends
at once, so whoever kills the parent has killed the server. A worker is ended by its parent only, or by a signal of its
own, after which it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import structlog

from eventstore.backoff import Backoff

# A worker that has lived so long may be started again at once.
_LIVED_SECONDS = 10.0
# Within these a worker has ended in order, or is killed. All in all an end takes less than 10 s.
_END_SECONDS = 7.5
# In JSON at most 6 times as many bytes, so that a line is sent at once and is no longer than asyncio reads.
_MOST_OF_REASON = 4000
_STOP, _READY, _RESTART, _FAILED = b"stop\n", b"ready\n", b"restart\n", b"failed "

_log = structlog.get_logger(__name__)


class WorkerFailed(Exception):
    """A worker ended before it had ever served; the message says why, if it could tell."""


class Assignment(msgspec.Struct, frozen=True):
    """What a worker is to be: which one, of what settings (as texts), at which database, with which descriptors.

    `arrivals` is where other workers send connections, `departures` the ways to them by their numbers. `held` are
    descriptors that it only keeps open.
    """

    number: int
    settings: dict[str, str]
    conninfo: str
    listening: list[int]
    arrivals: int
    departures: dict[int, int]
    held: list[int]

    @property
    def descriptors(self) -> list[int]:
        """All descriptors that the worker inherits."""
        return [*self.listening, self.arrivals, *self.departures.values(), *self.held]


@dataclass(frozen=True)
class Ways:
    """Pairs of datagram sockets, one for each worker: it reads one end, and all others write to the other."""

    pairs: Sequence[tuple[socket.socket, socket.socket]]

    @classmethod
    def between(cls, workers: int) -> Ways:
        """The ways between so many workers."""
        return cls([socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(workers)])

    def arrivals(self, worker: int) -> int:
        """The descriptor that a worker reads."""
        return self.pairs[worker][0].fileno()

    def departures(self, worker: int) -> dict[int, int]:
        """The descriptors by which a worker sends to the others."""
        return {number: end.fileno() for number, (_, end) in enumerate(self.pairs) if number != worker}

    def close(self) -> None:
        """Closes this process's ends."""
        for pair in self.pairs:
            for end in pair:
                end.close()


class Workers:
    """The workers, as the parent sees them; `command` starts one, with a descriptor's number as its last argument.

    `on_ready` hears once that all serve, `on_restart` that one of them was told to restart the system.
    """

    def __init__(
        self,
        command: Sequence[str],
        assignments: Sequence[Assignment],
        on_ready: Callable[[], None],
        on_restart: Callable[[], None],
    ) -> None:
        self._on_ready = on_ready
        self._on_restart = on_restart
        self._workers = [_Worker(command, assignment, self._told) for assignment in assignments]
        self._all_served = False

    async def run(self) -> None:
        """Starts the workers, and again whoever ends, until `stop`; raises `WorkerFailed` for one that cannot serve."""
        await asyncio.gather(*(worker.run() for worker in self._workers))
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Ends them all, in order if they can; the others within seconds."""
        for worker in self._workers:
            worker.stop()
        try:
            async with asyncio.timeout(_END_SECONDS):
                for worker in self._workers:
                    await worker.ended.wait()
        except TimeoutError:
            _log.warning("workers took too long to end and were killed")
            for worker in self._workers:
                worker.kill()

    def _told(self, line: bytes) -> None:
        if line == _RESTART:
            self._on_restart()
        elif line == _READY and not self._all_served and all(worker.has_served for worker in self._workers):
            self._all_served = True
            self._on_ready()


class _Worker:
    """One of them, in all its lives."""

    def __init__(self, command: Sequence[str], assignment: Assignment, told: Callable[[bytes], None]) -> None:
        self.has_served = False
        self.ended = asyncio.Event()
        self._command = command
        self._assignment = assignment
        self._told = told
        self._stopping = asyncio.Event()
        self._reason: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        backoff = Backoff(first=0.1, most=5.0)
        try:
            while True:
                await backoff.pause()
                if self._stopping.is_set():
                    return
                began = time.monotonic()
                code = await self._try_to_live()
                if self._stopping.is_set():
                    return
                if not self.has_served:
                    raise WorkerFailed(self._reason or f"worker {self._assignment.number} could not be started")
                number = self._assignment.number
                _log.error("a worker ended and is started again", worker=number, exit_code=code, reason=self._reason)
                if time.monotonic() - began > _LIVED_SECONDS:
                    backoff.reset()
        finally:
            self.ended.set()

    def stop(self) -> None:
        """Asks it to end."""
        self._stopping.set()
        if self._writer is not None:
            self._writer.write(_STOP)

    def kill(self) -> None:
        """Ends it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _try_to_live(self) -> int | None:
        """One life; its exit code, or None if the system has no process for it now."""
        self._reason = None
        try:
            return await self._live()
        except OSError as error:
            # The others go on, and this one when there is memory again.
            self._reason = str(error)
            return None

    async def _live(self) -> int:
        ours, theirs = socket.socketpair()
        descriptors = [*self._assignment.descriptors, theirs.fileno()]
        with contextlib.ExitStack() as unstarted, theirs:
            unstarted.callback(ours.close)
            # In a group of its own it does not get the terminal's Ctrl-C, which is for the parent.
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=descriptors,
                process_group=0,
            )
            unstarted.pop_all()
        try:
            await self._converse(ours)
            return await process.wait()
        finally:
            self.kill()
            await process.wait()

    async def _converse(self, pair: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=pair)
        try:
            writer.write(msgspec.json.encode(self._assignment) + b"\n")
            self._writer = writer
            if self._stopping.is_set():
                writer.write(_STOP)
            async for line in reader:
                self.has_served = self.has_served or line == _READY
                if line.startswith(_FAILED):
                    self._reason = msgspec.json.decode(line.removeprefix(_FAILED), type=str)
                self._told(line)
        except ConnectionError:
            pass  # it was killed, which its exit code tells
        finally:
            self._writer = None
            writer.close()


class Parent:
    """The parent, as a worker sees it through its end of the pair, which is the descriptor that it was started with."""

    def __init__(self, descriptor: int) -> None:
        self._pair = socket.socket(fileno=descriptor)
        self._pair.set_inheritable(False)
        with self._pair.makefile("rb", buffering=0) as lines:
            line = lines.readline()
        if not line:
            os._exit(1)
        self.assignment = msgspec.json.decode(line, type=Assignment)
        for inherited in self.assignment.descriptors:
            os.set_inheritable(inherited, False)

    def watch(self, stop: Callable[[], None]) -> None:
        """Calls `stop` when the parent asks for the end; ends the process when the parent has gone."""
        self._pair.setblocking(False)
        asyncio.get_running_loop().add_reader(self._pair, self._heard, stop)

    def ready(self) -> None:
        """Tells that this worker serves."""
        self._tell(_READY)

    def restart(self) -> None:
        """Tells that the system was asked to restart."""
        self._tell(_RESTART)

    def failed(self, reason: str) -> None:
        """Tells why this worker cannot serve, as far as it is not too long."""
        self._tell(_FAILED + msgspec.json.encode(reason[:_MOST_OF_REASON]) + b"\n")

    def unwatch(self) -> None:
        """Ends the watch."""
        asyncio.get_running_loop().remove_reader(self._pair)

    def _heard(self, stop: Callable[[], None]) -> None:
        try:
            heard = self._pair.recv(64)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if not heard:
            # Nobody is left who holds the data folder, so the next server may already be starting.
            os._exit(1)
        stop()

    def _tell(self, line: bytes) -> None:
        # Who has gone need not hear it; that is dealt with by the watch.
        with contextlib.suppress(OSError):
            self._pair.send(line)


def assignments(
    settings: Mapping[str, str], conninfo: str, listening: Sequence[Sequence[socket.socket]], ways: Ways, lock: int
) -> list[Assignment]:
    """The assignments of workers that have these listening sockets each; `lock` is what they hold with the parent."""
    return [
        Assignment(
            number=number,
            settings=dict(settings),
            conninfo=conninfo,
            listening=[each.fileno() for each in sockets],
            arrivals=ways.arrivals(number),
            departures=ways.departures(number),
            held=[lock],
        )
        for number, sockets in enumerate(listening)
    ]
