"""A child process that is told what to do in lines, and answers each with a line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from bench.servers.process import HOUSE, ServerFailed

PATIENCE = 60.0  # seconds that an answer may take
_STOPS_WITHIN = 15.0


class Program:
    """A running program. Everything raises `ServerFailed` with the end of its log if it is gone, or says nothing."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._input = process.stdin
        self._output = process.stdout
        self._log = log
        self._read = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, line: str, patience: float = PATIENCE) -> dict[str, Any]:
        """Says a line and returns the answer."""
        self.say(line)
        return self.answer(patience)

    def say(self, line: str) -> None:
        """Says a line, the answer to which is fetched later."""
        try:
            self._input.write(line.encode() + b"\n")
            self._input.flush()
        except BrokenPipeError:
            raise self._failed(f"was gone at {line.split()[0]!r}") from None

    def answer(self, patience: float = PATIENCE) -> dict[str, Any]:
        """The next answer."""
        deadline = time.monotonic() + patience
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._output], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._failed(f"said nothing for {patience:.0f} s")
            chunk = os.read(self._output.fileno(), 65536)
            if not chunk:
                raise self._failed("ended")
            self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise self._failed(f"answered {answer!r}")
        return answer

    def stop(self) -> None:
        """Ends its input, which ends it."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(_STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _failed(self, what: str) -> ServerFailed:
        self._log.seek(0)
        end = self._log.read()[-2000:].decode(errors="replace")
        return ServerFailed(f"{self._process.args!r} {what}:\n{end}")


@contextlib.contextmanager
def program(
    words: Sequence[str], core: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """Runs a program from the repository's folder until the context ends; on that core alone, if one is given."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            words,
            cwd=HOUSE,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            preexec_fn=lambda: _settle(core),
        )
        running = Program(process, log)
        try:
            yield running
        finally:
            running.stop()


def _settle(core: int | None) -> None:
    """Puts this process on its core, ahead of what else runs on the machine, if it may do so."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    with contextlib.suppress(PermissionError):
        os.nice(-20)


def two_cores() -> tuple[int | None, int | None]:
    """A core for the server and another one for its load; None where there is but one, and nothing is pinned."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)


def core_time(pid: int) -> float:
    """The time that a process and its threads have spent on cores so far, in seconds, to the microsecond (Linux)."""
    # The clock of a process, as clock_getcpuclockid(3) makes its number; /proc tells but hundredths of a second.
    return time.clock_gettime((~pid << 3) | 2)


def resident_kib(pid: int) -> int:
    """A process's memory as far as it is in the machine's, in KiB (VmRSS of proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ServerFailed(f"process {pid} is gone")
