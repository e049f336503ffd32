"""Socket.IO on Node, by its default engine and by uWebSockets.js.

The authors of uWebSockets.js publish no npm package; the one taken here is others' build of a release of it, for some
versions of Node, and the peer is left out where no such Node is found.
"""

from __future__ import annotations

from pathlib import Path

from bench import npm
from bench.rooms import TEXT, TEXT_VARIABLE, Command, Contestant

DEFAULT, UWS = "Socket.IO on Node", "Socket.IO on uWebSockets.js"
_PACKAGES = npm.Packages(Path(__file__).with_name("javascript"), ["server.js"])


def versions() -> dict[str, str]:
    """The versions of what takes part, as far as it is here."""
    return _PACKAGES.versions("socket.io", "ws", "uWebSockets.js") if _PACKAGES.folder.is_dir() else {}


def _prepare(engine: str) -> Command | str:
    problem = _PACKAGES.install()
    if problem:
        return problem
    node = next((node for node in npm.nodes() if engine != "uws" or _binary_for(node).exists()), None)
    if node is None:
        return "its npm package is not made for this version of Node"
    environment = {
        TEXT_VARIABLE: TEXT,
        # The other package brings native parts that `ws` would take up, though Socket.IO by itself has none.
        "WS_NO_BUFFER_UTIL": "1",
        "WS_NO_UTF_8_VALIDATE": "1",
    }
    return Command([node, "--expose-gc", str(_PACKAGES.folder / "server.js"), engine], environment)


def _binary_for(node: str) -> Path:
    name = npm.said_by(node, "['uws', process.platform, process.arch, process.versions.modules].join('_')")
    return _PACKAGES.folder / "node_modules" / "uWebSockets.js" / "binaries" / f"{name}.node"


BY_DEFAULT = Contestant(DEFAULT, lambda: _prepare("default"))
BY_UWS = Contestant(UWS, lambda: _prepare("uws"))
