"""Socket.IO on Node, by its default engine and by uWebSockets.js.

Their npm packages, pinned by `javascript/package-lock.json`, are installed once into the benchmarks' cache. The authors
of uWebSockets.js publish none there; the one taken here is others' build of a release of it, for some versions of Node,
and the peer is left out where no such Node is found.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.command_line import progress
from bench.rooms import TEXT, TEXT_VARIABLE, Command, Contestant
from bench.rooms.websocket_load import CACHE

DEFAULT, UWS = "Socket.IO on Node", "Socket.IO on uWebSockets.js"
_SOURCES = Path(__file__).with_name("javascript")
_FILES = ("package.json", "package-lock.json", "server.js")


def versions() -> dict[str, str]:
    """The versions of what takes part, as far as it is here."""
    node = _node_for("default")
    if node is None or not (folder := _folder()).is_dir():
        return {}
    packages = folder / "node_modules"
    found = {name: packages / name / "package.json" for name in ("socket.io", "ws", "uWebSockets.js")}
    return {
        "node": _said_by(node, "process.versions.node"),
        **{name: json.loads(file.read_text())["version"] for name, file in found.items() if file.exists()},
    }


def _prepare(engine: str) -> Command | str:
    npm = shutil.which("npm", path=_search_path())
    if npm is None or _node_for("default") is None:
        return "there is no Node with npm here"
    problem = _install(npm)
    if problem:
        return problem
    node = _node_for(engine)
    if node is None:
        return "its npm package is not made for this version of Node"
    environment = {
        TEXT_VARIABLE: TEXT,
        # The other package brings native parts that `ws` would take up, though Socket.IO by itself has none.
        "WS_NO_BUFFER_UTIL": "1",
        "WS_NO_UTF_8_VALIDATE": "1",
    }
    return Command([node, "--expose-gc", str(_folder() / "server.js"), engine], environment)


def _folder() -> Path:
    digest = hashlib.sha256(b"".join((_SOURCES / name).read_bytes() for name in _FILES))
    return CACHE / f"javascript-{digest.hexdigest()[:12]}"


def _install(npm: str) -> str | None:
    """Installs the packages if they are not; returns what went wrong."""
    folder = _folder()
    if folder.is_dir():
        return None
    unfinished = folder.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name in _FILES:
        shutil.copy(_SOURCES / name, unfinished)
    progress("installing the npm packages of the peers")
    command = [npm, "ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=unfinished, capture_output=True, text=True, check=False, env=_environment())
    if done.returncode:
        return f"npm could not install its packages: {done.stderr.strip()[-300:]}"
    unfinished.rename(folder)
    return None


@functools.cache
def _node_for(engine: str) -> str | None:
    """The first Node that can run an engine: that of the environment's packages, else the machine's."""
    for folder in _search_path().split(os.pathsep):
        found = shutil.which("node", path=folder)
        if found is None:
            continue
        node = _said_by(found, "process.execPath")  # what was found may be a script that starts it
        if engine != "uws" or _binary_for(node).exists():
            return node
    return None


def _binary_for(node: str) -> Path:
    name = _said_by(node, "['uws', process.platform, process.arch, process.versions.modules].join('_')")
    return _folder() / "node_modules" / "uWebSockets.js" / "binaries" / f"{name}.node"


def _said_by(node: str, expression: str) -> str:
    return subprocess.run([node, "-p", expression], check=True, capture_output=True, text=True).stdout.strip()


def _search_path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _search_path()}


BY_DEFAULT = Contestant(DEFAULT, lambda: _prepare("default"))
BY_UWS = Contestant(UWS, lambda: _prepare("uws"))
