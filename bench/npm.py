"""Node and its packages, for the peers that are written in JavaScript.

Their npm packages, pinned by a package-lock.json beside their sources, are installed once into the benchmarks' cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.command_line import progress
from bench.servers.process import CACHE

_PINNED = ("package.json", "package-lock.json")


@dataclass(frozen=True)
class Packages:
    """The packages of the programs in a folder; they and the programs are in `folder` once they are installed."""

    sources: Path
    programs: Sequence[str]

    @property
    def folder(self) -> Path:
        """Where they are, or would be: another folder for each state of the sources."""
        digest = hashlib.sha256(b"".join((self.sources / name).read_bytes() for name in self._files))
        return CACHE / f"javascript-{digest.hexdigest()[:12]}"

    @property
    def _files(self) -> tuple[str, ...]:
        return (*_PINNED, *self.programs)

    def install(self) -> str | None:
        """Installs them if they are not; returns what went wrong."""
        npm = shutil.which("npm", path=_search_path())
        if npm is None or node() is None:
            return "there is no Node with npm here"
        if self.folder.is_dir():
            return None
        unfinished = self.folder.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name in self._files:
            shutil.copy(self.sources / name, unfinished)
        progress("installing the npm packages of the peers")
        command = [npm, "ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, cwd=unfinished, capture_output=True, text=True, check=False, env=_environment())
        if done.returncode:
            return f"npm could not install its packages: {done.stderr.strip()[-300:]}"
        unfinished.rename(self.folder)
        return None

    def versions(self, *names: str) -> dict[str, str]:
        """The versions of Node and of these packages, as far as they are here."""
        found = node()
        if found is None:
            return {}
        files = {name: self.folder / "node_modules" / name / "package.json" for name in names}
        packages = {name: json.loads(file.read_text())["version"] for name, file in files.items() if file.exists()}
        return {"node": said_by(found, "process.versions.node"), **packages}


def node() -> str | None:
    """The first Node: that of the environment's packages, else the machine's; None if there is none."""
    return next(nodes(), None)


def nodes() -> Iterator[str]:
    """Every Node on the search path, as the program itself: what is found may be a script that starts it."""
    for folder in _search_path().split(os.pathsep):
        found = shutil.which("node", path=folder)
        if found is not None:
            yield said_by(found, "process.execPath")


@functools.cache
def said_by(node: str, expression: str) -> str:
    """What a Node makes of an expression."""
    return subprocess.run([node, "-p", expression], check=True, capture_output=True, text=True).stdout.strip()


def _search_path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _search_path()}
