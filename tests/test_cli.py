"""The command line, as the processes that people and scripts start."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tornado.ioloop import IOLoop

import projections
from audit import cli, history
from audit.asof import QUESTIONS
from audit.command import Command
from audit.output import Output
from audit.status import look
from audit.tail import Wanted, as_json
from audit.tail import tail as tail_log
from chat.commands import Commands
from chat.events import Erased
from eventstore.canonical import encode
from eventstore.events import Context, NewEvent, RecordedEvent, StreamWrite
from eventstore.log import EventLog
from settings import Settings, table
from tests.conftest import on_loop
from tests.forks import Forked
from tests.servers import (
    MINUTEBOOK,
    PASSWORD,
    SERVE,
    Answer,
    Client,
    Server,
    environment,
    launched,
    minutebook,
    tail,
    until,
)
from tests.test_documents import DOCS, quoted, rows

StartServer = Callable[..., Server]
CONTEXT = Context(actor=None, correlation_id="test")
FACT = NewEvent("Fact", encode({"text": "x" * 50}))
OTHER = NewEvent("Other", encode({}))
COMMANDS = [
    "asof",
    "bot",
    "check",
    "checkpoint",
    "diff",
    "erase",
    "export",
    "grant",
    "history",
    "import",
    "migrate",
    "prove",
    "replay",
    "serve",
    "status",
    "tail",
    "trace",
    "verify",
]
KEYS = ["position", "stream", "version", "type", "data", "metadata", "recorded_at"]


def _must_not_run(_settings: Settings) -> None:
    pytest.fail("the server was run")


@pytest.fixture
def minutes(io_loop: IOLoop, log: EventLog, commands: Commands) -> list[RecordedEvent]:
    """A short conversation, as the log has it; `database` holds it."""

    async def talk() -> list[RecordedEvent]:
        alice = await commands.register("Alice", "Passw0rd!", "request 1")
        await commands.make_channel(alice, "den", "request 2")
        await commands.send_message(alice, "den", 'Grüße, "Bob" \U0001f600\n', "request 3", "key")
        await commands.send_direct_message(alice, "FokaBot", "psst", "request 4")
        return await log.read()

    return on_loop(io_loop, talk)


# Help and wrong usage


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["alone", "--help"])
def test_the_program_tells_its_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(arguments, _must_not_run)

    told = capsys.readouterr()
    lines = [line.split() for line in (told.out or told.err).splitlines()]
    assert [line[0] for line in lines if line and line[0] in COMMANDS] == COMMANDS
    assert all(len(line) > 3 for line in lines if line and line[0] in COMMANDS), "each says what it is for"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_s_help_names_its_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"], _must_not_run) == 0

    told = "".join(capsys.readouterr().out.split())
    shown = {each.name: each.settings or frozenset() for each in cli.COMMANDS} | {"bot": cli.BOT_SETTINGS}
    for setting in table():
        if command != "serve" and setting.name not in shown[command]:
            assert f"{setting.flag}TEXT" not in told
            continue
        rest = f"{setting.help}[{setting.variable}; default: {setting.default_text}]"
        assert f"{setting.flag}TEXT{''.join(rest.split())}" in told


@pytest.mark.parametrize(
    "line",
    [
        "nope",
        "tail --nope",
        "tail --since -1",
        "tail --since x",
        "tail --type",
        "tail --grep (",
        "tail extra",
        "tail --stream \udcff",
        "erase --yes --reason x --message 99999999999999999999",
        "serve --port",
        "serve --port 99999",
        "serve --log-level loud",
        "replay --data-dir ''",
        "migrate --database-url nonsense",
        "--port 1 serve",
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(shlex.split(line), _must_not_run) == 2

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("minutebook: ")
    assert told.err.count("\n") == 1 == told.err.count("minutebook: ")


@pytest.mark.parametrize(
    "command", [[MINUTEBOOK, "serve"], [*SERVE], [*SERVE, "serve"]], ids=["script", "file", "both"]
)
def test_a_bad_value_in_the_environment_ends_the_program_with_2(command: Sequence[str]) -> None:
    done = minutebook(command=command, port="eighty")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "minutebook: port: must be a whole number from 0 to 65535, not 'eighty'\n"


@pytest.mark.parametrize(
    "command", [[MINUTEBOOK, "serve"], [*SERVE, "serve"], [*SERVE, "--log-level", "info"]], ids=str
)
def test_all_ways_to_start_the_server_are_the_same(database: str, tmp_path: Path, command: Sequence[str]) -> None:
    with Server(tmp_path / "data", command=command, database_url=database) as server, server.client() as client:
        until(lambda: client.ask("GET", "/readyz").status == 200, "the server is ready")


# tail


def test_tail_prints_the_log_as_it_stands(database: str, minutes: list[RecordedEvent]) -> None:
    done = minutebook("tail", database_url=database)

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(minutes) == 8
    for line, event in zip(lines, minutes, strict=True):
        shown = json.loads(line)
        assert list(shown) == KEYS
        assert (shown["position"], shown["stream"], shown["version"], shown["type"]) == (
            event.position,
            event.stream,
            event.version,
            event.type,
        )
        assert event.data is not None
        assert f'"data":{event.data.decode()},"metadata":{event.metadata.decode()},"recorded_at":' in line
        assert shown["recorded_at"].endswith("Z")
        assert datetime.fromisoformat(shown["recorded_at"]) == event.recorded_at


WANTED: list[tuple[Wanted, list[int]]] = [
    (Wanted(), [1, 2, 3, 4, 5, 6, 7, 8]),
    (Wanted(since=6), [7, 8]),
    (Wanted(since=8), []),
    (Wanted(since=99), []),
    (Wanted(types=frozenset({"ChannelCreated"})), [3, 6]),
    (Wanted(types=frozenset({"MessageSent", "DirectMessageSent"})), [7, 8]),
    (Wanted(since=3, types=frozenset({"ChannelCreated", "UsernameClaimed"})), [4, 6]),
    (Wanted(types=frozenset({"NoSuchType"})), []),
    (Wanted(stream="account-1000"), [5]),
    (Wanted(since=5, stream="account-1000"), []),
    (Wanted(stream="account-1000", types=frozenset({"MessageSent"})), []),
    (Wanted(stream="no-such-stream"), []),
    (Wanted(pattern=re.compile("(?i)GRÜSSE|psst")), [8]),
    (Wanted(pattern=re.compile("Grüße, .*Bob")), [7]),
    (Wanted(pattern=re.compile(r'"account_id":1000\b')), [4, 5]),
    (Wanted(pattern=re.compile("correlation_id")), []),
]


@pytest.mark.gen_test
@pytest.mark.parametrize(("wanted", "positions"), WANTED)
async def test_tail_shows_what_is_wanted_and_nothing_else(
    log: EventLog, minutes: list[RecordedEvent], wanted: Wanted, positions: list[int]
) -> None:
    written: list[bytes] = []

    await tail_log(log, wanted, as_json(written.append), follow=False)

    assert [json.loads(line)["position"] for line in b"".join(written).splitlines()] == positions


Positions = Callable[..., list[int]]


@pytest.fixture
def positions(database: str, capsys: pytest.CaptureFixture[str]) -> Positions:
    """The positions of what `tail` with some options prints, run in this process."""

    def run(*options: str) -> list[int]:
        assert cli.run(["tail", *options, "--database-url", database], _must_not_run) == 0
        return [json.loads(line)["position"] for line in capsys.readouterr().out.splitlines()]

    return run


def test_tail_s_options_choose_what_is_shown(minutes: list[RecordedEvent], positions: Positions) -> None:
    options = ["--since", "3", "--type", "ChannelCreated", "--type", "UsernameClaimed"]

    assert positions(*options) == [4, 6]
    assert positions(*options, "--stream", minutes[5].stream) == [6]


@pytest.mark.gen_test
async def test_tail_reads_streams_and_logs_of_more_than_a_page(log: EventLog) -> None:
    for _ in range(3):
        await log.append(StreamWrite("other", [FACT], expected_version=None), context=CONTEXT)
        await log.append(StreamWrite("long", [FACT] * 500, expected_version=None), context=CONTEXT)

    for wanted in (Wanted(), Wanted(stream="long")):
        written: list[bytes] = []
        await tail_log(log, wanted, as_json(written.append), follow=False)
        shown = [json.loads(line) for line in b"".join(written).splitlines()]
        assert len(shown) == (1500 if wanted.stream else 1503)
        assert [event["position"] for event in shown] == sorted({event["position"] for event in shown})


@pytest.mark.gen_test
async def test_tail_shows_erased_data_as_null(log: EventLog, minutes: list[RecordedEvent]) -> None:
    erased = Erased(None, 7, (7,), "asked for", "the operator").recorded_form()
    await log.append(StreamWrite(minutes[6].stream, [erased], expected_version=None), context=CONTEXT)
    written: list[bytes] = []

    await tail_log(log, Wanted(types=frozenset({"MessageSent"})), as_json(written.append), follow=False)

    shown = json.loads(b"".join(written))
    assert list(shown) == KEYS
    assert shown["data"] is None


def test_tail_begins_behind_a_time(
    minutes: list[RecordedEvent], log: EventLog, io_loop: IOLoop, positions: Positions
) -> None:
    on_loop(io_loop, lambda: log.append(StreamWrite("new", [FACT]), context=CONTEXT))

    assert positions("--since", minutes[6].recorded_at.isoformat()) == [8, 9]
    assert positions("--since", "1d") == list(range(1, 10))
    assert positions("--since", "0s") == []


def test_people_read_lines_with_names_and_nothing_that_their_terminal_would_obey(
    database: str, log: EventLog, io_loop: IOLoop, minutes: list[RecordedEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    alice = minutes[4].recorded_at.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")
    nasty = NewEvent("MessageSent", encode({"channel_id": 6, "sender_id": 1000, "text": "\x1b[2J\x9b2J"}))
    on_loop(io_loop, lambda: log.append(StreamWrite("message-x", [nasty]), context=CONTEXT))

    done = minutebook("tail", "--no-json", database_url=database)

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[4].startswith(f"{alice}        5 AccountRegistered  Alice  ")
    assert lines[4].endswith('account=Alice username="Alice"')
    assert lines[6].endswith('MessageSent        Alice  channel=#den sender=Alice text="Grüße, \\"Bob\\" 😀\\n"')
    assert "system" in lines[8]
    assert "\x1b" not in done.stdout
    assert "\x9b" not in done.stdout
    assert r"\u001b[2J\x9b2J" in lines[8]


class Terminal(io.TextIOWrapper):
    """Standard output as it is on a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("kind", "there"), [(Terminal, rb"\u009b2J\u007f"), (io.TextIOWrapper, b"\xc2\x9b2J\x7f")])
def test_json_has_nothing_that_a_terminal_would_obey(kind: type[io.TextIOWrapper], there: bytes) -> None:
    stdout = kind(io.BytesIO(), encoding="utf-8")
    said = {"text": "\x1b[2J\x9b2J\x7f\xe9"}

    Output(as_json=True, stdout=stdout).line(said)

    stdout.seek(0)
    shown = bytes(stdout.buffer.read())
    assert rb"\u001b[2J" + there + "é".encode() in shown
    assert json.loads(shown) == said


def test_tail_follows_until_it_is_interrupted(
    database: str, minutes: list[RecordedEvent], log: EventLog, io_loop: IOLoop, tmp_path: Path
) -> None:
    with running("tail", "--follow", "--since", "7", "--type", "Fact", "--type", "DirectMessageSent",
                 folder=tmp_path, database_url=database) as process:  # fmt: skip
        until(lambda: positions_in(tmp_path) == [8], "what is there is shown")

        on_loop(io_loop, lambda: log.append(StreamWrite("new", [FACT, OTHER, FACT]), context=CONTEXT))

        until(lambda: positions_in(tmp_path) == [8, 9, 11], "what comes is shown")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    assert (tmp_path / "stderr").read_text().strip() == ""
    assert positions_in(tmp_path) == [8, 9, 11]


def test_tail_ends_quietly_when_nobody_reads_on(database: str, log: EventLog, io_loop: IOLoop) -> None:
    # More than a pipe holds, so that tail still writes when its reader is gone.
    for _ in range(6):
        on_loop(io_loop, lambda: log.append(StreamWrite("s", [FACT] * 500, expected_version=None), context=CONTEXT))

    script = f"{shlex.quote(MINUTEBOOK)} tail | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["/bin/bash", "-c", script], env=environment({"database_url": database}), capture_output=True, text=True
    )

    line, code = done.stdout.splitlines()
    assert json.loads(line)["position"] == 1
    assert (code, done.stderr) == ("0", "")


def test_tail_works_beside_a_running_server_and_without_one(start_server: StartServer) -> None:
    server = start_server()
    with server.client() as client:
        client.enrol("Alice")

    beside = tail("--data-dir", server.data_dir)
    assert server.stop() == 0
    without = tail(data_dir=server.data_dir)

    types = ["UsernameClaimed", "AccountRegistered", "ChannelCreated", "UsernameClaimed", "AccountRegistered"]
    assert [event["type"] for event in beside] == [*types, "TokenIssued"]
    assert without == beside
    assert server.postmaster is None, "the Postgres that it started is stopped again"


@pytest.mark.parametrize("command", ["tail", "replay", "migrate"])
def test_where_there_is_no_log_a_tool_says_so_and_makes_none(command: str, tmp_path: Path) -> None:
    done = minutebook(command, "--data-dir", "missing", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("minutebook: there is no log in missing: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# migrate and replay


def test_migrate_makes_the_tables_once(cluster: str) -> None:
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute("CREATE DATABASE to_be_migrated")
    database = make_conninfo(cluster, dbname="to_be_migrated")

    first, second = (minutebook("migrate", database_url=database) for _ in range(2))

    assert (first.returncode, first.stdout, second.returncode, second.stdout) == (0, "", 0, "")
    assert first.stderr.startswith("applied ")
    assert "log_0001" in first.stderr
    assert "models_0001" in first.stderr
    assert second.stderr == "nothing to do\n"


def test_replay_makes_every_answer_anew_beside_a_running_server(start_server: StartServer, database: str) -> None:
    server = start_server(database_url=database)
    with server.client() as client:
        token = client.enrol("Alice")
        client.enrol("Bob")
        client.must("makechannel", token=token, name="den")
        client.must("addusertochannel", token=token, name="den", username="Bob")
        for text in ("one", "two", "three"):
            client.must("sendmessage", token=token, channel="den", message=text)
            client.must("senddm", token=token, username="Bob", message=text)
        newest = client.must("getmysentmessages", token=token)["sent_messages"][-1]
        client.must("deletemessage", token=token, message_id=newest["message_id"])
        before = answers(client, token)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("DELETE FROM messages; UPDATE dms SET text = 'wrong'; DELETE FROM members")
        # Without an event, lists that are in memory stay as they are for two seconds.
        until(lambda: answers(client, token) != before, "what is wrong in the tables is answered")

        done = minutebook("replay", database_url=database)

        assert (done.returncode, done.stdout) == (0, "")
        events = len(tail(database_url=database))
        assert done.stderr.endswith(f"rebuilt {len(projections.ALL)} read models from {events} events\n")
        until(lambda: answers(client, token) == before, "what was rebuilt is answered")
        client.must("sendmessage", token=token, channel="den", message="four")
        assert client.texts(token, "den") == ["one", "two", "four"]


def answers(client: Client, token: str) -> list[Answer]:
    """What every endpoint that reads answers now, but for the request's id."""
    given = [
        client.post("getchannels", token=token),
        client.post("readmessagesfromchannel", token=token, name="den", count=10),
        client.post("getmysentmessages", token=token),
        client.post("getmessagesforeveryone", token=token, count=10),
        client.post("getdms", token=token, count=10),
        client.post("gettoken", username="Alice", password=PASSWORD),
        client.post("login", username="Bob", password=PASSWORD),
    ]
    return [answer._replace(headers={}) for answer in given]


@contextmanager
def running(*arguments: str, folder: Path, **settings: object) -> Iterator[Forked | subprocess.Popen[bytes]]:
    """A command that goes on, with its output in files; killed at the end, if it still runs."""
    with (folder / "stdout").open("wb") as output, (folder / "stderr").open("wb") as errors:
        process = launched(arguments, (), settings, stdout=output.fileno(), stderr=errors.fileno())
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def positions_in(folder: Path) -> list[int]:
    """The positions in the whole lines that were printed until now."""
    text = (folder / "stdout").read_text()
    return [json.loads(line)["position"] for line in text.splitlines(keepends=True) if line.endswith("\n")]


# The document


def section(command: str) -> str:
    """What docs/commands.md says of a command."""
    found = re.search(rf"^## {command}\n(.*?)(?=^## |\Z)", (DOCS / "commands.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"docs/commands.md says nothing of {command}"
    return found[1]


def test_the_document_lists_every_command() -> None:
    listed = [quoted(command)[0] for command, _ in rows(DOCS / "commands.md", "Command")]

    assert sorted(listed) == COMMANDS


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_the_document_tells_every_option_of_a_command(command: Command) -> None:
    told = section(command.name)

    options = [max(each.opts, key=len) for each in command.parameters if isinstance(each, click.Option)]
    assert [option for option in options if option not in told] == []


def test_the_document_tells_every_key_of_the_status_and_of_what_can_be_asked(database: str) -> None:
    status, trace = quoted(section("status")), quoted(section("trace"))

    assert set(asyncio.run(look(database))) <= set(status)
    assert [column for column in history.COLUMNS if column not in trace] == []
    asked = [quoted(question)[0].split()[1] for question, _ in rows(DOCS / "commands.md", "Question")]
    assert asked == list(QUESTIONS)
