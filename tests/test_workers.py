"""Several processes that serve one port: clients need not know, and what ends comes back or ends as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import ssl
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import socketio
import tornado.test
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets

import server as server_module
from audit.command import CommandFailed
from settings import Settings
from tests.conftest import CI_KEY, own_database
from tests.listeners import SETTINGS, Chat, End, message_texts, own_chat, parsed, ready
from tests.servers import SERVE, Server, appends_wait, is_alive, minutebook, until
from tests.v3client import Person, own_loop
from tests.wire import PollingSession, Rejected
from workers import Assignment, WorkerFailed, Workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="connections are handed over as Linux does it")

ENDS_WITHIN = 10.0
CERTIFICATES = Path(tornado.test.__file__).parent
# Workers are for llhttp alone, whatever the other tests run on.
TWO: dict[str, Any] = {**SETTINGS, "workers": 2, "http_parser": "httptools"}


@pytest.fixture(scope="module")
def io_loop() -> Iterator[IOLoop]:
    yield from own_loop()


@pytest.fixture(scope="module")
def server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with (
        contextlib.contextmanager(own_database)(cluster) as database,
        Server(tmp_path_factory.mktemp("workers") / "data", database_url=database, **TWO) as started,
    ):
        yield started


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[Chat]:
    if server.process.poll() is not None:
        server.start()
    yield from own_chat(io_loop, server)


def workers(server: Server) -> list[int]:
    """The process ids of the workers, in the order of their start."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"server.py\0worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


def worker_of(session: PollingSession) -> int:
    return worker_of_sid(session.sid)


def worker_of_sid(sid: str) -> int:
    return int(sid.partition(".")[0])


async def sessions_at_both(chat: Chat, each: int = 3) -> list[PollingSession]:
    """Polling sessions, so many at least at each worker."""
    sessions: list[PollingSession] = []
    while any(Counter(map(worker_of, sessions))[worker] < each for worker in (0, 1)):
        sessions.append(await chat.wire.session(chat.place))
        assert len(sessions) < 100, "both workers get connections"
    return sessions


async def listens(session: PollingSession, person: Person) -> None:
    """Registers a polling session."""
    assert (await session.post("40" + json.dumps({"token": person.token}))).status == 200
    packets = await session.gather(2)
    assert packets[0].startswith("40{")
    assert parsed(packets[1]).data == ["ready", ready(person)]


async def hears(session: PollingSession, count: int) -> list[str]:
    """The texts of the next messages."""
    return message_texts([parsed(packet).data for packet in await session.gather(count)])


# Sessions. Every request of a polling session here is a connection of its own, which lands at either worker.


@pytest.mark.gen_test
async def test_both_workers_serve_and_tell_their_counts_each(chat: Chat) -> None:
    sessions = await sessions_at_both(chat)

    at = Counter(map(worker_of, sessions))
    for worker in (0, 1):
        for path in ("/metrics", "/metrics/") * 4:
            told = (await chat.wire.ask(chat.place, "GET", f"{path}?worker={worker}")).text
            [opened] = [line for line in told.splitlines() if line.startswith(_opened(worker))]
            assert float(opened.rpartition(" ")[2]) >= at[worker]


def _opened(worker: int) -> str:
    return f'minutebook_connections_opened_total{{worker="{worker}"}} '


@pytest.mark.gen_test
async def test_a_polling_session_is_whole_and_in_order_wherever_its_requests_land(chat: Chat) -> None:
    ann, bob = await chat.person(), await chat.person()
    channel = await chat.channel_of(ann, bob)
    sessions = await sessions_at_both(chat, each=1)
    await asyncio.gather(*(listens(session, bob) for session in sessions))

    async def talk() -> None:
        for number in range(40):
            await ann.sends(channel, str(number))

    heard, _ = await asyncio.gather(asyncio.gather(*(hears(session, 40) for session in sessions)), talk())

    assert heard == [[str(number) for number in range(40)]] * len(sessions)


@pytest.mark.gen_test
async def test_a_large_payload_comes_to_its_worker_whole(chat: Chat) -> None:
    ann = await chat.person()
    channel = await chat.channel_of(ann)
    body = {"channel": channel, "message": "x" * 4000}

    for session in await sessions_at_both(chat, each=2):
        await listens(session, ann)
        calls = [f"42{number}" + json.dumps(["send_message", body]) for number in range(10)]
        assert (await session.post(*calls)).status == 200

        answers = [parsed(packet) for packet in await session.gather(20) if packet.startswith("43")]

        assert [(answer.ack_id, answer.data[1]) for answer in answers] == [(number, 200) for number in range(10)]


@pytest.mark.gen_test
async def test_a_session_is_upgraded_by_a_connection_to_either_worker(chat: Chat) -> None:
    ann = await chat.person()
    channel = await chat.channel_of(ann)
    sessions = await sessions_at_both(chat)
    upgraded = []
    for session in sessions:
        await listens(session, ann)
        upgraded.append(await session.upgrade())

    await ann.sends(channel, "to all of them")

    for websocket in upgraded:
        received = await websocket.receive_text()
        while received == "6":
            received = await websocket.receive_text()
        assert message_texts([parsed(received).data]) == ["to all of them"]


@pytest.mark.gen_test
async def test_a_client_that_polls_by_new_connections_is_served(chat: Chat) -> None:
    ann = await chat.person()
    channel = await chat.channel_of(ann)
    heard: asyncio.Queue[str] = asyncio.Queue()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        client = socketio.AsyncClient(http_session=http)
        client.on("new_message", lambda message: heard.put_nowait(message["message"]))
        await client.connect(chat.v3.url, auth={"token": ann.token}, transports=["polling"])
        for number in range(20):
            _, status = await client.call("send_message", {"channel": channel, "message": str(number)})
            assert status == 200
        async with asyncio.timeout(10):
            assert [await heard.get() for _ in range(20)] == [str(number) for number in range(20)]
        await client.disconnect()


@pytest.mark.parametrize("sid", ["0.unknown", "1.unknown", "2.unknown", "-1.x", "x.y", ".", "1.", "unknown"])
@pytest.mark.gen_test
async def test_a_session_that_nobody_has_is_unknown(chat: Chat, sid: str) -> None:
    unknown = {"code": 1, "message": "Session ID unknown"}
    for _ in range(4):
        answer = await chat.wire.ask(chat.place, "GET", chat.place.target(sid=sid))
        assert (answer.status, answer.json) == (400, unknown)
        with pytest.raises(Rejected) as rejected:
            await chat.wire.websocket(chat.place, sid)
        assert (rejected.value.response.status, rejected.value.response.json) == (400, unknown)


@pytest.mark.gen_test
async def test_under_tls_connections_and_upgrades_come_to_their_worker(database: str, tmp_path: Path) -> None:
    tls: dict[str, Any] = {"tls_certificate": CERTIFICATES / "test.crt", "tls_key": CERTIFICATES / "test.key"}
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with Server(tmp_path / "data", database_url=database, **TWO, **tls) as server:
        there = f"127.0.0.1:{server.port}"
        handshake = f"https://{there}/socket.io/?EIO=4&transport=polling"
        one_connection = aiohttp.TCPConnector(limit=1, ssl=trusting)
        async with aiohttp.ClientSession(connector=one_connection) as kept, aiohttp.ClientSession() as other:
            sids: list[str] = []
            for worker in (0, 1, 0, 1, 0, 1):
                # Who asks for a worker's counts is given to it, connection and all, and stays there.
                async with kept.get(f"https://{there}/metrics/?worker={worker}") as answer:
                    assert _opened(worker) in await answer.text()
                async with kept.get(handshake) as answer:
                    opened = json.loads((await answer.text()).removeprefix("0"))
                sids.append(opened["sid"])
                assert worker_of_sid(sids[-1]) == worker
            for sid in sids:
                upgrade = f"wss://{there}/socket.io/?EIO=4&transport=websocket&sid={sid}"
                async with other.ws_connect(upgrade, ssl=trusting) as websocket:
                    await websocket.send_str("2probe")
                    assert await websocket.receive_str(timeout=10) == "3probe"
                    await websocket.send_str("5")
                    await websocket.send_str("40")
                    assert (await websocket.receive_str(timeout=10)).startswith("40{")
        assert server.stop() == 0


# The life of workers


@pytest.mark.gen_test
async def test_a_worker_that_is_killed_comes_back_and_the_other_goes_on(chat: Chat) -> None:
    ann = await chat.person()
    sessions = await sessions_at_both(chat)
    for session in sessions:
        await listens(session, ann)
    killed, stayed = workers(chat.server)

    os.kill(killed, signal.SIGKILL)

    until(lambda: len(workers(chat.server)) == 2 and killed not in workers(chat.server), "it is started again")
    assert stayed in workers(chat.server)
    # Connections that went to it meanwhile wait, and are served.
    answers = [await chat.wire.ask(chat.place, "GET", "/readyz") for _ in range(10)]
    assert [answer.status for answer in answers] == [200] * 10
    statuses = {(worker_of(session), (await session.post("3")).status) for session in sessions}
    assert statuses == {(0, 400), (1, 200)}
    assert (await chat.wire.session(chat.place)).sid
    [line] = chat.server.logged("a worker ended and is started again")
    assert (line["worker"], line["exit_code"]) == (0, -signal.SIGKILL)
    # What it had left open is closed by its next life, not only once its lease has lapsed.
    until(
        lambda: chat.server.logged("connections of this node's last life were closed"),
        "its ghosts are closed",
        within=30,
    )


def test_nothing_secret_stands_in_a_command_line(server: Server, chat: Chat) -> None:
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (server.process.pid, *workers(server))]

    assert len(lines) == 3
    for secret in (str(SETTINGS["secret"]), CI_KEY, server.database_url, "dbname"):
        assert not [line for line in lines if secret.encode() in line]


def test_every_worker_is_a_node_of_its_own(server: Server, chat: Chat) -> None:
    names = {(server.data_dir / file).read_text() for file in ("node", "node-1")}

    assert len(names) == 2
    lines = [line for line in server.log if line.get("worker") is not None]
    assert {line["worker"] for line in lines} <= {0, 1}
    assert len(server.logged("Minutebook listens")) == 1


@pytest.mark.gen_test
async def test_whoever_kills_the_parent_has_killed_the_server(chat: Chat) -> None:
    person = await chat.person()
    listener = await chat.listens(person)
    running = workers(chat.server)

    chat.server.kill()
    # At once, however long its workers take to notice.
    await asyncio.to_thread(chat.server.start)

    assert [pid for pid in running if is_alive(pid)] == []
    assert (await listener.end()).events == []
    assert await chat.at(chat.server).is_online(person) is False
    assert len(workers(chat.server)) == 2


@pytest.mark.gen_test
async def test_a_signal_ends_all_in_order(chat: Chat) -> None:
    person = await chat.person()
    listeners = [await chat.listens(person) for _ in range(6)]
    running, before = workers(chat.server), len(chat.server.log)

    assert await asyncio.to_thread(chat.server.stop) == 0

    assert [pid for pid in running if is_alive(pid)] == []
    for listener in listeners:
        assert await listener.end() == End([["server_restart", {"reconnect_in": 5}]], by_disconnect=False)
    assert [line for line in chat.server.log[before:] if line["level"] in ("error", "critical")] == []


def test_a_second_signal_ends_all_at_once(chat: Chat) -> None:
    running = workers(chat.server)
    with chat.server.client() as client:
        token = client.enrol("Talker")
        client.must("makechannel", token=token, name="den")
        with appends_wait(chat.server.database_url) as waiting:
            message = {"token": token, "channel": "den", "message": "hello"}
            client.send("POST", "/api/v3/sendmessage/", json.dumps(message).encode())
            waiting()
            os.kill(chat.server.process.pid, signal.SIGTERM)
            until(lambda: chat.server.logged("stopping"), "the server heads for its end")

            assert chat.server.stop(signal.SIGINT) == -signal.SIGINT

            until(lambda: not any(map(is_alive, running)), "the workers end with it")


@pytest.mark.gen_test
async def test_a_restart_that_is_asked_for_ends_all(chat: Chat) -> None:
    running = workers(chat.server)

    assert await chat.bancho("ciTrigger", k=CI_KEY) == {"status": 200, "message": "ok"}

    assert await asyncio.to_thread(chat.server.process.wait, ENDS_WITHIN) == 0
    assert [pid for pid in running if is_alive(pid)] == []


# Starting


# Tornado leaves the socket that it could not bind to the collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_port_that_others_share_is_in_use() -> None:
    with bind_sockets(0, "127.0.0.1", reuse_port=True)[0] as shared:
        taken = Settings(port=shared.getsockname()[1], workers=2)

        with pytest.raises(CommandFailed, match="Address already in use"), server_module._listening_sockets(taken):
            pass


_SAYS_TOO_MUCH = "import sys; from workers import Parent; Parent(int(sys.argv[1])).failed('because ' * 100_000)"
# Serves for a moment.
_SHORT_LIVED = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.recv(9999); s.send(b'ready\\n')"


@pytest.mark.gen_test
async def test_a_worker_for_which_the_system_has_no_process_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    start = asyncio.create_subprocess_exec
    lives: list[None] = []

    async def start_or_fail(*arguments: Any, **options: Any) -> Any:
        lives.append(None)
        if len(lives) == 2:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return await start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_or_fail)
    assignment = Assignment(0, {}, "", [], 0, {}, [])
    served = Workers([sys.executable, "-ISc", _SHORT_LIVED], [assignment], lambda: None, lambda: None)

    with capture_logs() as logs:
        running = asyncio.create_task(served.run())
        while len(lives) < 3:
            await asyncio.sleep(0.01)
            assert not running.done()
        await served.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    assert [line["reason"] for line in logs[:2]] == [None, "[Errno 12] Cannot allocate memory"]


@pytest.mark.gen_test
async def test_a_worker_s_last_words_may_be_long() -> None:
    assignment = Assignment(0, {}, "", [], 0, {}, [])
    failing = Workers([sys.executable, "-c", _SAYS_TOO_MUCH], [assignment], lambda: None, lambda: None)

    with pytest.raises(WorkerFailed, match=r"^because because "):
        await failing.run()


@pytest.mark.gen_test
async def test_workers_need_llhttp() -> None:
    with pytest.raises(CommandFailed, match="need the http_parser httptools"):
        await server_module.serve_by_workers(Settings(workers=2, http_parser="tornado"))


def test_a_worker_that_cannot_serve_ends_the_start(database: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "node-1").mkdir(parents=True)

    done = minutebook("serve", command=SERVE, data_dir=tmp_path / "data", port=0, database_url=database, **TWO)

    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last) == (1, f"minutebook: [Errno 21] Is a directory: '{tmp_path}/data/node-1'")
