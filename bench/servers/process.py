"""A server in a process of its own: started, waited for, stopped."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HOUSE = Path(__file__).parents[2]
CACHE = HOUSE / "build" / "bench"  # what is compiled or installed once for the benchmarks
_STARTS_WITHIN = 30.0  # seconds
_STOPS_WITHIN = 15.0


class ServerFailed(Exception):
    """A server did not start, or ended before its time; the message has the end of its log."""


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Runs a server from the repository's folder until the context ends; yields its process id once it listens."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=HOUSE, env={**os.environ, **(environment or {})}, stdout=output, stderr=output
        )
    try:
        _await_listening(process, port, log)
        yield process.pid
        if process.poll() is not None:
            raise ServerFailed(f"{command} ended:\n{_end_of(log)}")
    finally:
        process.terminate()
        try:
            process.wait(_STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def core_seconds(pid: int) -> float | None:
    """The time that a process has spent on a core so far; None where the system does not tell (it is not Linux)."""
    try:
        _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")
    except FileNotFoundError:
        return None
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _await_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerFailed(f"a server did not start:\n{_end_of(log)}")
        time.sleep(0.05)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
