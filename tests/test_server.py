"""The server as a process: how it starts, serves, shares a database, and stops."""

from __future__ import annotations

import contextlib
import grp
import http.client
import json
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IMODE

import psycopg
import pytest
import tornado.test

from tests.servers import ROOT, SERVE, Client, Server, appends_wait, environment, is_alive, minutebook, tail, until
from tests.test_embedded_postgres import needs_public_programs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

StartServer = Callable[..., Server]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a Postgres of its own that tests only look at."""
    with Server(tmp_path_factory.mktemp("server") / "data", log_level="debug") as started:
        yield started


# Starting


def test_the_start_line_says_where_it_listens_and_where_the_data_is(server: Server) -> None:
    line = server.start_line

    assert line is not None
    assert line["event"] == f"Minutebook listens on http://127.0.0.1:{server.port} - Ctrl-C or SIGTERM stops it"
    assert (line["data"], line["database"]) == (str(server.data_dir), "embedded")
    assert (line["level"], line["pid"]) == ("info", server.process.pid)


def test_it_listens_on_its_port_and_on_no_other(server: Server) -> None:
    processes = family(server.process.pid)
    assert server.postmaster in processes
    assert len(processes) > 5, "the processes of Postgres are among them"

    assert listening(processes) == {("0100007F", server.port)}


def test_its_postgres_waits_for_the_disk(server: Server) -> None:
    with psycopg.connect(server.conninfo) as connection:
        shown = [connection.execute(f"SHOW {name}").fetchone() for name in ("fsync", "full_page_writes")]

    assert shown == [("on",), ("on",)]


def test_what_is_secret_is_private(server: Server) -> None:
    folder, secret = server.data_dir.stat(), (server.data_dir / "secret").stat()

    if os.geteuid() == 0:
        # Postgres's own user passes through to its folder, and can neither list nor change ours.
        assert S_IMODE(folder.st_mode) == 0o710
        assert folder.st_gid == (server.data_dir / "postgres").stat().st_gid
    else:
        assert S_IMODE(folder.st_mode) == 0o700
    assert S_IMODE(secret.st_mode) == 0o600
    assert S_IMODE((server.data_dir / "postgres").stat().st_mode) == 0o700
    assert folder.st_uid == secret.st_uid == os.geteuid()


def test_the_access_log_is_json_with_the_answer_s_request_id(server: Server) -> None:
    with server.client() as client:
        answer = client.post("getchannels", token="none")

    line = until(
        lambda: next((line for line in server.log if line.get("request_id") == answer.headers["X-Request-Id"]), None),
        "the request is logged",
    )
    assert (line["event"], line["logger"], line["level"]) == ("answered", "handlers.access", "debug")
    assert (line["method"], line["path"], line["status"]) == ("POST", "/api/v3/getchannels/", 401)
    assert line["milliseconds"] >= 0


def test_a_connection_goes_on_after_a_refusal(server: Server) -> None:
    large = b" " * 70_000

    with server.client() as client:
        statuses = [
            client.ask(method, path, body).status
            for method, path, body in [
                ("GET", "/nowhere", None),
                ("POST", "/nowhere", large),
                ("PUT", "/api/v3/login/", large),
                ("POST", "/api/v3/login/", large),
                ("POST", "/api/v3/login/", b"{"),
                ("GET", "/healthz", None),
            ]
        ]

    assert statuses == [404, 404, 405, 413, 400, 200]


def test_a_second_server_on_one_folder_says_so_and_ends(server: Server) -> None:
    done = minutebook("serve", data_dir=server.data_dir, port=0)

    assert done.returncode == 1
    assert done.stderr == (
        f"minutebook: another server (pid {server.process.pid}) runs on {server.data_dir}: "
        "stop it, or give another --data-dir\n"
    )
    with server.client() as client:
        assert client.ask("GET", "/readyz").status == 200


def test_a_port_in_use_is_one_clear_line(server: Server, tmp_path: Path) -> None:
    done = minutebook("serve", data_dir=tmp_path / "data", port=server.port)

    assert done.returncode == 1
    assert done.stderr == f"minutebook: cannot listen on 127.0.0.1 port {server.port}: Address already in use\n"
    assert not (tmp_path / "data" / "postgres").exists(), "nothing slow had begun"


def test_an_address_that_is_not_ours_is_one_clear_line(tmp_path: Path) -> None:
    done = minutebook("serve", data_dir=tmp_path / "data", port=0, address="192.0.2.1")

    assert done.returncode == 1
    assert done.stderr == "minutebook: cannot listen on 192.0.2.1 port 0: Cannot assign requested address\n"


CERTIFICATES = Path(tornado.test.__file__).parent


@pytest.mark.parametrize("parser", ["httptools", "tornado"])
def test_it_serves_https_behind_a_proxy_that_is_trusted(start_server: StartServer, database: str, parser: str) -> None:
    tls = {"tls_certificate": CERTIFICATES / "test.crt", "tls_key": CERTIFICATES / "test.key"}
    server = start_server(
        database_url=database, http_parser=parser, trusted_proxies="127.0.0.0/8", login_limit=1, **tls
    )
    assert f"https://127.0.0.1:{server.port} " in str(server.start_line)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=20, context=trusting)

    def status(address: str, username: str) -> int:
        body = json.dumps({"username": username, "password": "Wr0ng!pass"})
        connection.request("POST", "/api/v3/login", body, {"X-Forwarded-For": address})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    # Failed logins count by the address that the proxy tells.
    first, again, other = status("192.0.2.1", "Ann"), status("192.0.2.1", "Bob"), status("192.0.2.2", "Cid")
    connection.close()
    assert (again, first) == (429, other)
    assert first != 429


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--tls-certificate", "nowhere.pem"],
            "minutebook: cannot serve HTTPS by nowhere.pem: No such file or directory",
        ),
        (["--tls-certificate", str(CERTIFICATES / "test.key")], "minutebook: cannot serve HTTPS by "),
        (["--tls-key", "nowhere.pem"], "minutebook: tls_key: there is no tls_certificate that it belongs to"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_one_clear_line(given: list[str], said: str, tmp_path: Path) -> None:
    done = minutebook("serve", *given, data_dir=tmp_path / "data")

    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://me:hunter2@127.0.0.1:1/chat?connect_timeout=2", "Connection refused"),
        ("host=/nowhere user=me password=hunter2", "No such file"),
    ],
)
def test_a_database_that_cannot_be_reached_is_one_clear_line(url: str, problem: str, tmp_path: Path) -> None:
    done = minutebook("serve", data_dir=tmp_path / "data", port=0, database_url=url)

    assert done.returncode == 1
    assert done.stderr.startswith("minutebook: the database cannot be reached")
    assert done.stderr.count("\n") == 1
    assert problem in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(("address", "shown"), [("::1", "[::1]"), ("localhost", "127.0.0.1"), ("0.0.0.0", "0.0.0.0")])
def test_it_listens_where_the_setting_says(start_server: StartServer, database: str, address: str, shown: str) -> None:
    if address == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")

    server = start_server(database_url=database, address=address)

    with Client(server.port, address) as client:
        assert client.ask("GET", "/healthz").body == {"status": "ok"}
    assert server.start_line is not None
    # A name may have several addresses, of which the first one is told.
    assert f"http://{shown}:{server.port} " in server.start_line["event"].replace("[::1]", shown)


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_stops_it_and_its_postgres(start_server: StartServer, number: signal.Signals) -> None:
    server = start_server()
    processes = family(server.process.pid)
    assert server.postmaster in processes

    assert server.stop(number) == 0

    assert [pid for pid in processes if is_alive(pid)] == []
    assert not (server.data_dir / "postgres" / "postmaster.pid").exists()
    assert [line["event"] for line in server.log][-2:] == ["stopping", "Postgres has stopped"]


def test_requests_in_flight_are_finished_before_it_ends(start_server: StartServer, database: str) -> None:
    server = start_server(database_url=database)
    with server.client() as client:
        token = client.enrol("Talker")
        client.must("makechannel", token=token, name="den")
        with appends_wait(database) as waiting:
            client.send("POST", "/api/v3/sendmessage/", message_to_den(token))
            waiting()

            server.process.send_signal(signal.SIGTERM)

            until(lambda: server.logged("stopping"), "the server heads for its end")
            until(lambda: refuses_connections(server.port), "no more connections are taken")
            assert server.process.poll() is None, "it waits for the request"
        assert client.receive().body == {"message": "Message sent!"}
    assert server.process.wait(timeout=10) == 0
    assert [event["data"]["text"] for event in tail("--type", "MessageSent", database_url=database)] == ["hello"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once(start_server: StartServer, database: str, second: signal.Signals) -> None:
    server = start_server(database_url=database)
    with server.client() as client:
        token = client.enrol("Talker")
        client.must("makechannel", token=token, name="den")
        with appends_wait(database) as waiting:
            client.send("POST", "/api/v3/sendmessage/", message_to_den(token))
            waiting()
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.logged("stopping"), "the server heads for its end")

            assert server.stop(second) == -second
    assert server.log[-1]["event"] == "stopping", "nothing more is said, and no traceback"


def test_idle_connections_do_not_hold_it_up(start_server: StartServer, database: str) -> None:
    server = start_server(database_url=database)
    with server.client() as kept, socket.create_connection(("127.0.0.1", server.port)) as half:
        kept.ask("GET", "/healthz")
        half.sendall(b"POST /api/v3/login/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")

        server.process.send_signal(signal.SIGTERM)

        assert server.process.wait(timeout=10) == 0
    assert not server.logged("requests in flight took too long")


def message_to_den(token: str) -> bytes:
    return json.dumps({"token": token, "channel": "den", "message": "hello"}).encode()


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


# Going on after a restart


def test_a_conversation_goes_on_after_a_restart(start_server: StartServer) -> None:
    server = start_server()
    with server.client() as client:
        token = client.enrol("Alice", "Wond3rland!")
        client.must("makechannel", token=token, name="den")
        client.must("sendmessage", token=token, channel="den", message="before")
    assert server.stop() == 0

    server.start()

    with server.client() as client:
        client.must("sendmessage", token=token, channel="den", message="after")
        assert client.texts(token, "den") == ["before", "after"]
        assert client.must("gettoken", username="Alice", password="Wond3rland!")["token"] == token
        assert client.post("register", username="alice", password="Wond3rland!").status == 401
    events = tail(data_dir=server.data_dir)
    assert [event["position"] for event in events] == list(range(1, len(events) + 1))


@pytest.mark.slow
def test_it_refuses_a_log_whose_secret_is_lost_or_another(start_server: StartServer) -> None:
    server = start_server()
    secret = server.data_dir / "secret"
    kept = secret.read_bytes()
    assert server.stop() == 0

    for replacement in (None, b"0123456789abcdef"):
        secret.unlink() if replacement is None else secret.write_bytes(replacement)
        done = minutebook("serve", data_dir=server.data_dir, port=0, log_level="warning")
        assert done.returncode == 1
        assert done.stderr == (
            "minutebook: this log was made with another secret: "
            "put its file `secret` back into data_dir, or give it as a setting\n"
        )
        assert server.postmaster is None, "Postgres was stopped, too"

    secret.write_bytes(kept)
    server.start()


def test_a_secret_file_without_a_secret_is_one_clear_line(tmp_path: Path, database: str) -> None:
    tmp_path.joinpath("secret").write_text("too short\n")

    done = minutebook("serve", data_dir=tmp_path, port=0, database_url=database)

    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"minutebook: {tmp_path}/secret does not hold a secret: ")


# A database of one's own


@pytest.mark.parametrize("form", ["keywords", "url"])
def test_it_serves_from_a_database_of_one_s_own(start_server: StartServer, database: str, form: str) -> None:
    server = start_server(database_url=database if form == "keywords" else as_url(database))
    assert server.start_line is not None
    assert server.start_line["database"] == "external"

    with server.client() as client:
        token = client.enrol("Talker")

    assert sorted(path.name for path in server.data_dir.iterdir()) == ["log.key", "node", "secret", "server.lock"]
    assert S_IMODE(server.data_dir.stat().st_mode) == 0o700
    assert listening(family(server.process.pid)) == {("0100007F", server.port)}
    assert server.stop() == 0
    server.start()
    with server.client() as client:
        assert client.post("getchannels", token=token).status == 404


def as_url(conninfo: str) -> str:
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    return f"postgresql:///{parts.pop('dbname')}?" + "&".join(f"{name}={value}" for name, value in parts.items())


def test_two_servers_on_one_database_serve_one_world(start_server: StartServer, database: str) -> None:
    shared = {"database_url": database, "secret": "the secret of both servers"}
    one, other = start_server("one", **shared), start_server("other", **shared)
    with one.client() as here, other.client() as there:
        token = here.enrol("Alice")
        bob = there.enrol("Bob")

        there.must("makechannel", token=token, name="den")
        here.must("addusertochannel", token=token, name="den", username="bob")
        for number in range(0, 10, 2):
            here.must("sendmessage", token=token, channel="den", message=f"{number}")
            there.must("sendmessage", token=bob, channel="den", message=f"{number + 1}")

        assert here.texts(token, "den") == there.texts(bob, "den") == [str(number) for number in range(10)]
        assert there.post("register", username="alice", password="Passw0rd!").body == {"message": "User exists!"}
        assert there.must("gettoken", username="Alice", password="Passw0rd!")["token"] == token
        changed = here.must("generatetoken", username="Alice", password="Passw0rd!")["token"]
        assert here.post("getchannels", token=token).status == 401
        until(lambda: there.post("getchannels", token=token).status == 401, "the old token ends there too")
        assert there.post("getchannels", token=changed).status == 200


def test_a_second_server_on_one_database_needs_the_secret_of_the_first(
    start_server: StartServer, database: str, tmp_path: Path
) -> None:
    start_server("one", database_url=database)

    done = minutebook("serve", data_dir=tmp_path / "other", port=0, database_url=database, log_level="warning")

    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("minutebook: this log was made with another secret: ")


# As an ordinary user


@needs_public_programs
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_it_runs_as_an_ordinary_user() -> None:
    become = as_nobody()
    if become is None:
        pytest.skip("the user nobody cannot run Python or read the repository")
    account = pwd.getpwnam("nobody")
    with contextlib.ExitStack() as stack:
        # Every user can pass through it, unlike pytest's own.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mb-")))
        os.chown(folder, account.pw_uid, account.pw_gid)
        server = stack.enter_context(Server(folder / "data", command=[*become, *SERVE]))

        with server.client() as client:
            token = client.enrol("Talker")
            client.must("makechannel", token=token, name="den")
            assert client.texts(token, "den") == []
        users = {Path(f"/proc/{pid}").stat().st_uid for pid in family(server.process.pid)}
        assert users == {account.pw_uid}
        assert S_IMODE(server.data_dir.stat().st_mode) == 0o700
        assert server.stop() == 0


def as_nobody() -> list[str] | None:
    """How to start a program as the user nobody, if that user can run the server."""
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    become = ["setpriv", "--reuid=nobody", f"--regid={group}", "--clear-groups"]
    # Python may lie where only root can look; then nobody gets leave to read, and nothing else.
    for extra in ([], ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]):
        probe = [*become, *extra, sys.executable, "-c", "import server"]
        if (
            shutil.which("setpriv")
            and subprocess.run(probe, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL).returncode == 0
        ):
            return [*become, *extra]
    return None


# Looking at processes


def family(pid: int) -> set[int]:
    """The process and all that descend from it."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(processes: set[int]) -> set[tuple[str, int]]:
    """The TCP addresses (in hex) and ports on which any of the processes listens."""
    sockets: set[str] = set()
    for pid in processes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    sockets.add(str(descriptor.readlink()))
    found: set[tuple[str, int]] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else []:
            fields = line.split()
            local, state, inode = fields[1], fields[3], fields[9]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                address, port = local.split(":")
                found.add((address, int(port, 16)))
    return found
