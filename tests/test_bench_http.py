"""What the benchmarks of HTTP send and refuse, and the limits that they put on workers."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bench import core_share
from bench import http as bench
from bench.load import Load
from bench.rooms.program import core_time
from bench.servers import ACCOUNTS, ARCHIVE, CHANNELS, READ, TEXT, Running, minutebook
from bench.servers.answers import check_answers
from bench.servers.process import ServerFailed

RIGHT: dict[str, Any] = {
    "sendmessage": {"message": "Message sent!"},
    "getchannels": {
        "channels": [{"channel_name": name, "channel_id": i} for i, name in enumerate((*CHANNELS, ARCHIVE))]
    },
    "readmessagesfromchannel": {
        "messages": [
            {
                "message_id": i,
                "sender": "Listener 1",
                "message": TEXT,
                "channel": ARCHIVE,
                "timestamp": datetime.now(UTC).isoformat(),
            }
            for i in range(READ)
        ]
    },
}


@contextmanager
def answering(answers: dict[str, Any]) -> Iterator[Running]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(answers[self.path.split("/")[3]]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Running(0, server.server_port, ("token",))
        server.shutdown()
        thread.join()


def test_a_server_that_answers_as_the_contract_has_it_is_measured() -> None:
    with answering(RIGHT) as server:
        check_answers(server)


@pytest.mark.parametrize(
    ("endpoint", "wrong"),
    [
        ("sendmessage", {"message": "Message queued!"}),
        ("getchannels", {"channels": RIGHT["getchannels"]["channels"][:-1]}),
        ("readmessagesfromchannel", {"messages": RIGHT["readmessagesfromchannel"]["messages"][1:]}),
        ("readmessagesfromchannel", {"messages": RIGHT["readmessagesfromchannel"]["messages"][::-1]}),
    ],
    ids=["not sent", "a channel too few", "a message too few", "newest first"],
)
def test_a_server_that_answers_something_else_is_not_measured(endpoint: str, wrong: dict[str, Any]) -> None:
    with answering({**RIGHT, endpoint: wrong}) as server, pytest.raises(ServerFailed, match=endpoint):
        check_answers(server)


def test_of_mixed_connections_one_in_ten_sends_into_the_channel_that_the_others_read() -> None:
    entrant = bench._Entrant(minutebook.SERVER, Running(0, 1, ("token",) * ACCOUNTS), "")

    [reads, messages], loads = bench._parts(entrant, bench.MIXED, Load(callers=64, warm_up=1, seconds=2))

    assert [load.callers for load in loads] == [57, 7]
    assert all(b"/readmessagesfromchannel/" in request and b'"archive"' in request for request in reads.requests)
    assert all(b"/sendmessage/" in request and b'"archive"' in request for request in messages.requests)


def is_limited_here() -> bool:
    try:
        core_share.check_available(0.2)
    except core_share.ShareUnavailable:
        return False
    return True


@pytest.mark.skipif(not is_limited_here(), reason="needs control groups, and root")
def test_a_limited_process_takes_no_more_of_a_core_than_its_share() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            with core_share.limited(process.pid, 0.2):
                began, taken = time.monotonic(), core_time(process.pid)
                time.sleep(0.5)
                share = (core_time(process.pid) - taken) / (time.monotonic() - began)
                assert 0 < share < 0.3
        finally:
            process.kill()


def test_where_no_groups_can_be_made_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(core_share, "_hierarchy", lambda: (tmp_path / "not there", True))

    with pytest.raises(core_share.ShareUnavailable, match="no control group can be made"):
        core_share.check_available(0.5)


def test_the_unified_hierarchy_is_told_the_share_and_the_period(tmp_path: Path) -> None:
    core_share._limit(tmp_path, True, 6_000)

    assert (tmp_path / "cpu.max").read_text() == "6000 20000"


def test_idle_time_is_what_no_core_worked() -> None:
    before = core_share.CoreTimes(idle=100, total=400)

    assert before.idle_until(core_share.CoreTimes(idle=150, total=600)) == 0.25
    assert core_share.CoreTimes.now().total > 0
