"""The documents say what is: links lead somewhere, tables are those of the code, and examples run as they stand."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import create_connection
from typing import NamedTuple

import pytest
from prometheus_client.metrics_core import Metric
from tornado.testing import bind_unused_port

from chat.events import TYPES
from handlers import ops
from handlers.sockets import admission, endpoints
from handlers.v3 import ENDPOINTS, QUERIES
from tests.conftest import own_database
from tests.servers import NODE, ROOT, Server, until

DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
AUDIT_KEY = "the key of the documents' auditor"


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


# --- Links and tables ------------------------------------------------------------------------------------------------


def links(text: str) -> list[str]:
    """Where a document's links lead, but for those that leave the repository."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def anchors(text: str) -> set[str]:
    """The headings of a document as links name them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def files_named(text: str) -> set[str]:
    """The files with a folder that a document names as such."""
    return set(re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|c|js|json|md))`", text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in links(document.read_text()):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_file_that_is_named_is_there(document: Path) -> None:
    assert [path for path in files_named(document.read_text()) if not (ROOT / path).is_file()] == []


def test_links_and_files_are_found_wherever_they_stand() -> None:
    text = "# One `two`: three\n[a](x.md#one), [b](http://x.md) `a/b.py` `b.py`\n```\n# no\n```\n"

    assert (links(text), anchors(text), files_named(text)) == (["x.md#one"], {"one-two-three"}, {"a/b.py"})


def test_every_decision_is_listed_by_its_title() -> None:
    decisions = sorted((DOCS / "decisions").glob("0*.md"))
    titles = [path.read_text().partition("\n")[0].removeprefix("# ").split(": ", 1) for path in decisions]

    listed = re.findall(r"^\| \[(\d+)\]\((.*?)\) \| (.*) \|$", (DOCS / "decisions/README.md").read_text(), re.MULTILINE)

    assert listed == [(number, path.name, title) for path, (number, title) in zip(decisions, titles, strict=True)]


def rows(document: Path, heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading."""
    found = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[ |-]+\n((?:\|.*\n)+)", document.read_text(), re.MULTILINE)
    assert found, f"{name(document)} has no table with the heading {heading!r}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found[1].splitlines()]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_the_log_s_document_lists_every_type_with_its_data() -> None:
    listed = {quoted(kind)[0]: set(quoted(data)) for kind, _, data in rows(DOCS / "log.md", "Type")}

    assert listed.keys() == TYPES.keys()
    for kind, words in listed.items():
        assert set(TYPES[kind].__struct_fields__) <= words, kind


def test_the_listeners_document_lists_every_command_with_its_keys() -> None:
    table = rows(DOCS / "listening.md", "Event | REST")

    assert {quoted(event)[0]: quoted(rest)[0] for event, rest, _ in table} == endpoints.EVENTS
    for event, rest, keys in table:
        body, _ = (ENDPOINTS | QUERIES)[quoted(rest)[0]]
        assert set(quoted(keys)) - {"idempotency_key"} == set(body.__struct_fields__) - {"token"}, event


def test_the_listeners_document_lists_every_reason_why_a_recovery_fails() -> None:
    source = Path(str(admission.__file__)).read_text()

    listed = [quoted(reason)[0] for reason, _ in rows(DOCS / "listening.md", "`reason` of `recovery_failed`")]

    assert sorted(listed) == sorted(set(re.findall(r'RecoveryFailed\("(.*?)"\)', source)))


def test_the_operators_document_lists_every_metric() -> None:
    counts = {"open": 0, "opened": 0, "closed": {}, "delivered": 0, "delivered_bytes": 0}
    metrics = ops._Reading(counts, True, 1).collect()

    listed = [quoted(metric)[0] for metric, _ in rows(DOCS / "operating.md", "Metric")]

    assert sorted(listed) == sorted(sample_name(metric) for metric in metrics)


def test_the_operators_document_tells_every_reason_why_a_connection_is_closed() -> None:
    sources = "".join(path.read_text() for path in ROOT.glob("realtime/*.py"))
    ends = set(re.findall(r'(?:close|end|given_up|say_goodbye)\("([a-z ]+)"|\(outlet, "([a-z ]+)"\)', sources))
    [told] = re.findall(r"^The reasons: (.*?)\n\n", (DOCS / "operating.md").read_text(), re.MULTILINE | re.DOTALL)

    # A WebSocket that upgrades nothing ends without a connection.
    reasons = {first or second for first, second in ends} - {"no upgrade", "upgrade timeout"}
    assert reasons <= set(quoted(told)), reasons


def sample_name(metric: Metric) -> str:
    return f"{metric.name}_total" if metric.type == "counter" else str(metric.name)


# --- Examples --------------------------------------------------------------------------------------------------------


def blocks(document: Path, language: str) -> list[str]:
    """The blocks of a document that are marked with a language, or with none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
    return [block for marked, block in found if marked == language]


def examples(document: Path, language: str) -> list[str]:
    """The whole programs in a language that a document shows."""
    return [block for block in blocks(document, language) if re.match(r"import |from ", block)]


Run = Callable[..., Callable[[], str]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts a program, and gives what reads the lines that it has written."""
    with contextlib.ExitStack() as stack:

        def start(
            text: str, *arguments: str, command: Path = Path(sys.executable), **environment: str
        ) -> Callable[[], str]:
            number = len(list(tmp_path.glob("example*")))
            program = tmp_path / (f"example{number}.mjs" if command == NODE else f"example{number}.py")
            program.write_text(text)
            told = tmp_path / f"told{number}"
            process = subprocess.Popen(
                [command, program, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
                stdout=stack.enter_context(told.open("wb")),
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return told.read_text

        yield start


class Chat(NamedTuple):
    """A server with alice and bob, who are in the channel `den`."""

    server: Server
    alice: str
    bob: str

    def of_this(self, example: str) -> str:
        """The example, for this server."""
        assert "http://127.0.0.1:8080" in example
        return example.replace("http://127.0.0.1:8080", f"http://127.0.0.1:{self.server.port}")

    def say(self, text: str) -> None:
        with self.server.client() as client:
            client.must("sendmessage", token=self.alice, channel="den", message=text)


@pytest.fixture(scope="module")
def chat(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    with (
        contextlib.contextmanager(own_database)(cluster) as database,
        Server(tmp_path_factory.mktemp("documents") / "data", database_url=database, audit_key=AUDIT_KEY) as server,
    ):
        with server.client() as client:
            alice, bob = client.enrol("alice"), client.enrol("bob")
            client.must("makechannel", token=alice, name="den")
            client.must("addusertochannel", token=alice, name="den", username="bob")
        yield Chat(server, alice, bob)


def test_the_readme_s_listener_hears_what_is_said(chat: Chat, run: Run) -> None:
    [listener] = re.findall(r"<<'END'.*?\n(.*?)^END$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)

    told = run(chat.of_this(listener), chat.bob)

    until(lambda: "ready Server has accepted the connection and registered you as : bob" in told(), "bob is registered")
    chat.say("Is anybody here?")
    until(lambda: "new_message {'sender': 'alice', 'message': 'Is anybody here?'" in told(), "bob hears alice")


def test_python_s_listener_talks_and_hears(chat: Chat, run: Run) -> None:
    [example] = examples(DOCS / "listening.md", "python")

    told = run(chat.of_this(example), chat.bob)

    until(lambda: {"#den bob: Hello!", "200 Message sent!"} <= set(told().splitlines()), "bob talks")
    chat.say("Hello, bob!")
    until(lambda: "#den alice: Hello, bob!" in told(), "bob hears alice")


def test_javascript_s_listener_talks_and_hears(chat: Chat, run: Run, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(ROOT / "tests" / "javascript" / "node_modules")
    [example] = examples(DOCS / "listening.md", "js")

    told = run(chat.of_this(example), chat.bob, command=NODE)

    until(lambda: {"#den bob: Hello!", "200 Message sent!"} <= set(told().splitlines()), "bob talks", within=20)
    with chat.server.client() as client:
        client.must("senddm", token=chat.alice, username="bob", message="Psst!")
    until(lambda: "alice to you: Psst!" in told(), "bob hears alice")


def test_the_auditor_reads_what_stands_there_and_what_comes(chat: Chat, run: Run) -> None:
    chat.say("For the minutes!")
    [example] = examples(DOCS / "log.md", "python")

    told = run(chat.of_this(example), "0", AUDIT_KEY=AUDIT_KEY)

    until(lambda: '"text": "For the minutes!"' in told(), "what stands there")
    chat.say("And for those to come!")
    until(lambda: '"text": "And for those to come!"' in told(), "what comes")


def test_the_real_time_server_s_example_does_what_it_is_said_to(run: Run) -> None:
    hall, clients = examples(DOCS / "realtime.md", "python")
    [promised] = blocks(DOCS / "realtime.md", "")
    socket, port = bind_unused_port()
    socket.close()

    run(hall.replace("8000", str(port)))
    until(lambda: answers(port), "the hall is open")
    told = run(clients.replace("8000", str(port)))

    until(lambda: len(told().splitlines()) >= len(promised.splitlines()), "the clients are done")
    assert told() == promised


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), create_connection(("127.0.0.1", port)):
        return True
    return False
