"""The house: which package may import which, and which outside library belongs to which (design, "The house").

The rules are functions from sources to faults, so they are tried on sources that break them, too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from chat.events import TYPES
from projections.schema import metadata

ROOT = Path(__file__).parents[1]

# Each package, and what it may import of the others. What a lower one needs of a higher one is handed in by the server.
HOUSE: Mapping[str, set[str]] = {
    "settings": set(),
    "loops": set(),
    "eventstore": set(),
    "workers": {"eventstore"},
    "realtime": set(),
    "http1": set(),
    "chat": {"eventstore"},
    "projections": {"eventstore", "chat"},
    "handlers": {"eventstore", "chat", "projections", "realtime", "http1"},
    "bot": {"eventstore", "chat", "projections", "realtime"},
    "audit": {"eventstore", "chat", "projections", "realtime", "settings"},
    "server": {
        *("settings", "loops", "workers", "eventstore", "realtime", "http1", "chat", "projections"),
        *("handlers", "bot", "audit"),
    },
}
# They may import everything, and nothing of the house may import them.
GUESTS = {"tests", "bench"}

LIBRARIES: Mapping[str, set[str]] = {
    # Comes with discord.py, and yarl with it: what its connections fail with and its addresses are made of.
    "aiohttp": {"bot"},
    "alembic": {"eventstore", "projections"},
    "bcrypt": {"chat"},
    "click": {"audit"},
    "cryptography": {"chat", "eventstore"},
    "discord": {"bot"},
    "httptools": {"http1"},
    "msgspec": set(HOUSE),
    "prometheus_client": {"handlers"},
    "psycopg": {"eventstore", "settings"},
    "rich": {"audit"},
    "sqlalchemy": {"eventstore", "projections"},
    "structlog": set(HOUSE),
    "tornado": {"handlers", "http1", "realtime", "server"},
    "uvloop": {"loops"},
    "yarl": {"bot"},
    "zstandard": {"audit"},
}

SAYS_NOTHING = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}

# What chat is about, by the names of its tables and events.
CHAT_WORDS = {name.lower() for name in (*metadata.tables, *TYPES)}
# What the rooms below call by the same words.
OWN_WORDS: Mapping[str, set[str]] = {
    "eventstore": {"connections", "erased"},
    "realtime": {"connections", "messages", "members"},
}
# Accounts of the operating system, not of chat.
OTHER_MEANINGS = {"_ACCOUNTS_FOR_ROOT"}

Sources = Mapping[str, str]  # by the dotted name of the module; a package by its own name
Rule = Callable[[Sources], list[str]]


def house() -> dict[str, str]:
    """The sources of everything that is installed: all packages and modules at the root but the guests."""
    files = [*ROOT.glob("*.py"), *(file for init in ROOT.glob("*/__init__.py") for file in init.parent.rglob("*.py"))]
    sources = {_dotted(file): file.read_text() for file in files}
    return {name: source for name, source in sources.items() if _room(name) not in GUESTS}


def _dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _room(module: str) -> str:
    return module.partition(".")[0]


def imports(sources: Sources, module: str) -> Iterator[str]:
    """The modules that a module imports, wherever in it, each by its dotted name."""
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            whole = _absolute(sources, module, node)
            for alias in node.names:
                part = f"{whole}.{alias.name}"
                yield part if part in sources else whole
        elif isinstance(node, ast.Call) and re.search(r"\b(import_module|__import__)$", ast.unparse(node.func)):
            yield f"<by name: {ast.unparse(node)}>"


def _absolute(sources: Sources, module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return str(node.module)
    is_package = any(name.startswith(f"{module}.") for name in sources)
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *filter(None, [node.module])])


def imports_point_down(sources: Sources) -> list[str]:
    return [
        f"{module} imports {imported}"
        for module in sources
        for imported in imports(sources, module)
        if _room(imported) in HOUSE.keys() | GUESTS
        and _room(imported) not in HOUSE.get(_room(module), set()) | {_room(module)}
    ]


def packages_have_their_place(sources: Sources) -> list[str]:
    return [f"{room} is not in the table of this test" for room in sorted({*map(_room, sources)} - HOUSE.keys())]


def libraries_keep_to_their_packages(sources: Sources) -> list[str]:
    return [
        f"{module} imports {imported}"
        for module in sources
        for imported in imports(sources, module)
        if _room(imported) not in HOUSE.keys() | GUESTS | sys.stdlib_module_names
        and _room(module) not in LIBRARIES.get(_room(imported), set())
    ]


def nothing_goes_round(sources: Sources) -> list[str]:
    edges = {
        module: {imported for imported in imports(sources, module) if imported in sources and imported != module}
        for module in sources
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return [" → ".join(error.args[1])]
    return []


def names_say_something(sources: Sources) -> list[str]:
    return [module for module in sources if SAYS_NOTHING & set(re.split(r"[._]", module))]


def the_log_knows_no_chat(sources: Sources) -> list[str]:
    return [
        f"{module}:{line}: {word}"
        for module, source in sources.items()
        if _room(module) in OWN_WORDS
        for line, text in _names_and_texts(source)
        if text not in OTHER_MEANINGS
        for word in re.split(r"[^a-z]+", text.lower())
        if word in CHAT_WORDS - OWN_WORDS[_room(module)]
    ]


def _names_and_texts(source: str) -> Iterator[tuple[int, str]]:
    """All names and texts in the code, with their lines; comments and docstrings are none of it."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield line, node.value
        for field in ("id", "attr", "name", "arg", "asname", "module"):
            if isinstance(value := getattr(node, field, None), str):
                yield line, value


RULES: list[Rule] = [
    imports_point_down,
    packages_have_their_place,
    libraries_keep_to_their_packages,
    nothing_goes_round,
    names_say_something,
    the_log_knows_no_chat,
]

BREACHES: list[tuple[Rule, Sources, str]] = [
    (imports_point_down, {"eventstore.log": "from chat.events import TYPES"}, "eventstore.log imports chat.events"),
    (imports_point_down, {"eventstore.log": "def f():\n    import chat"}, "eventstore.log imports chat"),
    (imports_point_down, {"chat.rules": "import projections"}, "chat.rules imports projections"),
    (imports_point_down, {"projections.dms": "import handlers.v3.http"}, "projections.dms imports handlers.v3.http"),
    (imports_point_down, {"realtime.hub": "from eventstore import log"}, "realtime.hub imports eventstore"),
    (imports_point_down, {"http1.server": "import realtime.door"}, "http1.server imports realtime.door"),
    (imports_point_down, {"realtime.door": "import http1.server"}, "realtime.door imports http1.server"),
    (imports_point_down, {"handlers.ops": "import settings"}, "handlers.ops imports settings"),
    (imports_point_down, {"handlers.ops": "import audit.tail"}, "handlers.ops imports audit.tail"),
    (imports_point_down, {"bot.fokabot": "import handlers"}, "bot.fokabot imports handlers"),
    (imports_point_down, {"audit.tail": "from bot import fokabot"}, "audit.tail imports bot"),
    (imports_point_down, {"audit.cli": "import server"}, "audit.cli imports server"),
    (imports_point_down, {"settings": "import eventstore.errors"}, "settings imports eventstore.errors"),
    (imports_point_down, {"server": "from tests.fold import x"}, "server imports tests.fold"),
    (packages_have_their_place, {"attic.old": ""}, "attic is not in the table of this test"),
    (libraries_keep_to_their_packages, {"chat.rules": "import tornado.web"}, "chat.rules imports tornado.web"),
    (libraries_keep_to_their_packages, {"handlers.ops": "from bcrypt import hashpw"}, "handlers.ops imports bcrypt"),
    (libraries_keep_to_their_packages, {"handlers.ops": "import sqlalchemy as sa"}, "handlers.ops imports sqlalchemy"),
    (libraries_keep_to_their_packages, {"server": "import requests"}, "server imports requests"),
    (
        libraries_keep_to_their_packages,
        {"chat": "import importlib\nimportlib.import_module('tornado')"},
        "chat imports <by name: importlib.import_module('tornado')>",
    ),
    (nothing_goes_round, {"chat.a": "import chat.b", "chat.b": "from chat import a"}, "chat.a → chat.b → chat.a"),
    (
        nothing_goes_round,
        {"chat": "", "chat.a": "from .b import x", "chat.b": "def f():\n    from chat.a import y"},
        "chat.a → chat.b → chat.a",
    ),
    (names_say_something, {"chat.utils": ""}, "chat.utils"),
    (names_say_something, {"handlers.helpers.http": ""}, "handlers.helpers.http"),
    (names_say_something, {"realtime.room_manager": ""}, "realtime.room_manager"),
    (the_log_knows_no_chat, {"eventstore.a": "x = 1\nsql = 'SELECT text FROM messages'"}, "eventstore.a:2: messages"),
    (the_log_knows_no_chat, {"eventstore.a": "t = f'DROP TABLE {s}.accounts'"}, "eventstore.a:1: accounts"),
    (the_log_knows_no_chat, {"eventstore.a": "def read_channels(): ..."}, "eventstore.a:1: channels"),
    (the_log_knows_no_chat, {"eventstore.a": "kind = 'MessageSent'"}, "eventstore.a:1: messagesent"),
    (the_log_knows_no_chat, {"realtime.a": "class TokenIssued: ..."}, "realtime.a:1: tokenissued"),
]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule(rule: Rule) -> None:
    assert rule(house()) == []


@pytest.mark.parametrize(("rule", "sources", "fault"), BREACHES)
def test_a_breach_of_the_rule_is_found(rule: Rule, sources: Sources, fault: str) -> None:
    found = rule(sources)

    if rule is nothing_goes_round:
        found = [" → ".join(_turned(each.split(" → "))) for each in found]
    assert found == [fault]


def test_every_rule_is_seen_to_fail() -> None:
    assert {rule for rule, _, _ in BREACHES} == set(RULES)


def test_what_keeps_the_rules_is_not_found_fault_with() -> None:
    sources = {
        "eventstore.feed": '"""Of messages."""\nimport psycopg, asyncio  # for accounts\nmessage = "one message"',
        "chat.commands": "from eventstore.log import EventLog\nfrom chat import rules",
        "chat.rules": "import msgspec",
        "handlers.v3": "from handlers.v3 import dms",
        "handlers.v3.dms": "from handlers.v3.call import Call\nfrom tornado import web",
        "handlers.v3.call": "from projections.models import ReadModels",
        "server": "import handlers.v3, audit.cli, settings",
    }

    assert [fault for rule in RULES for fault in rule(sources)] == []


def test_the_whole_house_is_looked_at() -> None:
    sources = house()

    assert {"server", "settings", "eventstore.log", "handlers.v3", "handlers.v3.http", "chat"} <= sources.keys()
    assert "eventstore.log" in set(imports(sources, "server"))
    assert "handlers.v3.accounts" in set(imports(sources, "handlers.v3"))


def _turned(cycle: list[str]) -> list[str]:
    """A cycle from its first module on, whichever it was found at."""
    start = cycle.index(min(cycle))
    return [*cycle[start:-1], *cycle[: start + 1]] if start else cycle
