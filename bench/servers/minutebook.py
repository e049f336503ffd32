"""Ours: `server.py` as a user starts it, but without limits to the rate of messages and with cheap password hashes.

The world is made through its own API.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.rounds import OURS
from bench.servers import ACCOUNTS, ARCHIVE, ARCHIVED, CHANNELS, TEXT, Contestant, Running, username
from bench.servers.process import ServerFailed, free_port, running

_PASSWORD = "Minutes-1776!"
_AT_ONCE = 8


@contextlib.contextmanager
def _serve(conninfo: str, folder: Path) -> Iterator[Running]:
    with started(folder, {"--database-url": conninfo}) as (pid, port):
        yield Running(pid, port, World(port).make())


@contextlib.contextmanager
def started(folder: Path, more: Mapping[str, str] | None = None) -> Iterator[tuple[int, int]]:
    """Runs the server with its data in a folder, and more settings than those of all benchmarks; its pid and port."""
    port = free_port()
    settings = {
        "--port": str(port),
        "--data-dir": str(folder / "data"),
        "--rate-limit": "0",
        "--bcrypt-cost": "4",
        "--log-level": "warning",
        **(more or {}),
    }
    command = [sys.executable, "server.py", "serve", *(part for setting in settings.items() for part in setting)]
    with running(command, port, folder / "minutebook.log") as pid:
        yield pid, port


class World:
    """Makes the world, several requests at a time."""

    def __init__(self, port: int) -> None:
        self._port = port

    def make(self) -> tuple[str, ...]:
        """Makes all of it; the tokens of its accounts."""
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(self._register, range(ACCOUNTS)))
            tokens = tuple(threads.map(self._token, range(ACCOUNTS)))
            for channel in (*CHANNELS, ARCHIVE):
                self.post([("makechannel", {"token": tokens[0], "name": channel})])
            list(threads.map(self._join(tokens[0]), range(1, ACCOUNTS)))
            share = ARCHIVED // _AT_ONCE
            list(threads.map(lambda i: self._archive(tokens[i], share), range(_AT_ONCE)))
        return tokens

    def _register(self, number: int) -> None:
        self.post([("register", _credentials(number))])

    def _token(self, number: int) -> str:
        [answer] = self.post([("generatetoken", _credentials(number))])
        return str(answer["token"])

    def _join(self, token: str) -> Callable[[int], None]:
        def join(number: int) -> None:
            self.post(
                [
                    ("addusertochannel", {"token": token, "name": channel, "username": username(number)})
                    for channel in (*CHANNELS, ARCHIVE)
                ]
            )

        return join

    def _archive(self, token: str, count: int) -> None:
        self.post([("sendmessage", {"token": token, "message": TEXT, "channel": ARCHIVE})] * count)

    def post(self, requests: Sequence[tuple[str, dict[str, str]]]) -> list[dict[str, object]]:
        """Sends the requests one after the other over one connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        answers = []
        for endpoint, body in requests:
            connection.request("POST", f"/api/v3/{endpoint}/", json.dumps(body))
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status not in (200, 201):
                raise ServerFailed(f"{endpoint} answered {answer.status} {text[:200]}")
            answers.append(json.loads(text))
        connection.close()
        return answers


def _credentials(number: int) -> dict[str, str]:
    return {"username": username(number), "password": _PASSWORD}


@contextlib.contextmanager
def _serve_by_tornado(conninfo: str, folder: Path) -> Iterator[Running]:
    with started(folder, {"--database-url": conninfo, "--http-parser": "tornado"}) as (pid, port):
        yield Running(pid, port, World(port).make())


_COUNT = "SELECT count(*) FROM messages"
SERVER = Contestant(OURS, _serve, _COUNT)
# The same but for the parser of HTTP, so no peer.
BY_TORNADO = Contestant(f"{OURS}, Tornado's parser", _serve_by_tornado, _COUNT)
