"""What a crash may cost: nothing that was acknowledged, and nothing twice.

Sixty-four senders write at once while the server, its Postgres, or both are killed with SIGKILL; Postgres waits for the
disk as it does by default. Half of the senders give an Idempotency-Key and repeat what was not acknowledged.
"""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from tests.servers import Client, Server, is_alive, tail, until

pytestmark = pytest.mark.slow

SENDERS = 64
CHANNELS = 8
RECOVERS_WITHIN = 10.0

StartServer = Callable[..., Server]


class Attempt(NamedTuple):
    """A request: when it began and ended, and its status, or 0 if the connection broke."""

    text: str
    began: float
    ended: float
    status: int


@dataclass
class Crowd:
    """Senders of texts of their own over keep-alive connections, until they are told to stop or cannot go on."""

    port: int
    token: str
    name: str
    attempts: list[Attempt] = field(default_factory=list)
    _tried: dict[str, int] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _senders: list[Future[None]] = field(default_factory=list)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(SENDERS))

    def __enter__(self) -> Crowd:
        self._senders = [self._pool.submit(self._send, number) for number in range(SENDERS)]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Waits until all senders have ended, after their next answer at the latest."""
        self._stopping.set()
        self._pool.shutdown()
        for sender in self._senders:
            sender.result()

    def wait_for(self, acknowledged: int) -> None:
        """Returns as soon as so many texts were acknowledged."""
        until(lambda: len(self.acknowledged) >= acknowledged, f"{acknowledged} messages are acknowledged", within=30)

    @property
    def tried(self) -> set[str]:
        """All texts that were sent, whatever became of them."""
        return set(self._tried)

    @property
    def acknowledged(self) -> set[str]:
        """The texts that the server said to have."""
        return {attempt.text for attempt in list(self.attempts) if attempt.status == 200}

    @property
    def unacknowledged(self) -> set[str]:
        return self.tried - self.acknowledged

    def statuses(self, chosen: Callable[[Attempt], bool] = lambda _: True) -> set[int]:
        return {attempt.status for attempt in self.attempts if chosen(attempt)}

    def send_again(self, port: int) -> None:
        """Repeats what has a key and was not acknowledged."""
        with Client(port) as client:
            for text in sorted(self.unacknowledged):
                if _has_key(self._tried[text]):
                    self._attempt(client, text, self._tried[text])

    def _send(self, number: int) -> None:
        with Client(self.port) as client:
            for count in itertools.count():
                text = f"{self.name} {number} {count}"
                self._tried[text] = number
                while (status := self._attempt(client, text, number)) != 200:
                    if status == 0 or self._stopping.is_set():
                        return
                    time.sleep(0.05)  # as the answer asks for, only sooner
                    if not _has_key(number):
                        break
                if self._stopping.is_set():
                    return

    def _attempt(self, client: Client, text: str, number: int) -> int:
        key = text.replace(" ", "-") if _has_key(number) else None
        began = time.monotonic()
        try:
            channel = f"channel {number % CHANNELS}"
            status = client.post("sendmessage", key, token=self.token, channel=channel, message=text).status
        except TimeoutError:
            raise AssertionError(f"no answer to {text!r}") from None
        except (OSError, http.client.HTTPException):
            status = 0
        self.attempts.append(Attempt(text, began, time.monotonic(), status))
        return status


def _has_key(number: int) -> bool:
    return number % 2 == 0


@pytest.fixture
def server(start_server: StartServer) -> Server:
    return start_server()


@pytest.fixture
def token(server: Server) -> str:
    """The token of somebody who is in all the channels."""
    with server.client() as client:
        token = client.enrol("Talker")
        for number in range(CHANNELS):
            client.must("makechannel", token=token, name=f"channel {number}")
        return token


def check_minutes(server: Server, token: str, *crowds: Crowd) -> None:
    """Nothing acknowledged is lost, nothing is there twice, and the read models say what the log says."""
    events = tail(data_dir=server.data_dir)
    assert [event["position"] for event in events] == list(range(1, len(events) + 1))
    recorded = {event["position"]: event["data"]["text"] for event in events if event["type"] == "MessageSent"}
    times = Counter(recorded.values())
    for crowd in crowds:
        assert {text: times[text] for text in crowd.acknowledged} == dict.fromkeys(crowd.acknowledged, 1)
    assert set(times.values()) == {1}
    assert set(times) <= set().union(*(crowd.tried for crowd in crowds))
    assert shown(server, token) == recorded


def shown(server: Server, token: str) -> dict[int, str]:
    """All messages as their readers see them, by id."""
    found: dict[int, str] = {}
    with server.client() as client:
        for number in range(CHANNELS):
            answer = client.must("readmessagesfromchannel", token=token, name=f"channel {number}", count=1000)
            assert len(answer["messages"]) < 1000, "more was sent than one answer shows"
            found |= {message["message_id"]: message["message"] for message in answer["messages"]}
    return found


def check_repeats(server: Server, token: str, *crowds: Crowd) -> None:
    """What has a key can be repeated until it is acknowledged, and then is there once."""
    for crowd in crowds:
        crowd.send_again(server.port)
        assert not [text for text in crowd.unacknowledged if _has_key(int(text.split()[-2]))]
    check_minutes(server, token, *crowds)


@pytest.mark.parametrize("with_postgres", [False, True], ids=["the server", "the server and Postgres"])
def test_a_kill_loses_nothing_acknowledged_and_repeats_nothing(server: Server, token: str, with_postgres: bool) -> None:
    crowds: list[Crowd] = []
    for name in ("first", "second", "third"):
        with Crowd(server.port, token, name) as crowd:
            crowds.append(crowd)
            crowd.wait_for(acknowledged=400)
            if with_postgres:
                os.kill(postmaster(server), signal.SIGKILL)
            server.kill()
        # A sender that was about to send again when all was over has nothing open.
        assert len(crowd.unacknowledged) > SENDERS // 2, "the kill came in the middle of requests"
        server.start()

        check_minutes(server, token, *crowds)

    check_repeats(server, token, *crowds)


@pytest.mark.parametrize("victim", ["postmaster", "writer"])
def test_requests_get_503_while_postgres_is_dead_and_the_server_recovers_by_itself(
    server: Server, token: str, victim: str, record_property: Callable[[str, object], None]
) -> None:
    with Crowd(server.port, token, "crowd") as crowd:
        crowd.wait_for(acknowledged=400)
        pid = postmaster(server) if victim == "postmaster" else writer(server)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: 503 in crowd.statuses(), "requests are refused")
        crowd.wait_for(acknowledged=len(crowd.acknowledged) + 400)

    assert crowd.statuses() == {200, 503}
    # A backend that outlives the postmaster may still end what it was doing, so those in flight get either answer.
    assert crowd.statuses(lambda attempt: attempt.began < killed < attempt.ended) <= {200, 503}
    assert max(attempt.ended - attempt.began for attempt in crowd.attempts) < RECOVERS_WITHIN
    served_again = max(attempt.ended for attempt in crowd.attempts if attempt.status == 503) - killed
    record_property("seconds until nobody was refused any more", round(served_again, 2))
    assert served_again < RECOVERS_WITHIN
    assert is_alive(server.process.pid)
    with server.client() as client:
        until(lambda: client.ask("GET", "/readyz").status == 200, "the server is ready")
    check_minutes(server, token, crowd)
    check_repeats(server, token, crowd)


@pytest.mark.parametrize("moment", ["initdb", "postmaster", "migration"])
def test_a_server_that_was_killed_in_its_first_start_starts_the_next_time(tmp_path: Path, moment: str) -> None:
    data_dir = tmp_path / "data"
    server = Server(data_dir)
    reached: dict[str, Callable[[], object]] = {
        "initdb": lambda: list(data_dir.glob("postgres.new-*/global")),
        "postmaster": lambda: (data_dir / "postgres" / "postmaster.pid").exists(),
        "migration": lambda: "Postgres is running" in server.output,
    }
    try:
        server.launch()
        until(reached[moment], moment)
        server.kill()

        server.start()

        with server.client() as client:
            token = client.enrol("Talker")
            client.must("makechannel", token=token, name="den")
            client.must("sendmessage", token=token, channel="den", message="hello")
            assert client.texts(token, "den") == ["hello"]
    finally:
        server.end()


def postmaster(server: Server) -> int:
    pid = server.postmaster
    assert pid is not None
    return pid


def writer(server: Server) -> int:
    """The process of Postgres that commits the server's appends."""
    with psycopg.connect(server.conninfo) as connection:
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE query LIKE 'WITH head%' ORDER BY state_change DESC LIMIT 1"
        ).fetchone()
    assert found is not None
    return int(found[0])
