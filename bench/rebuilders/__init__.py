"""Ways to make a read model anew from a whole log, as `bench.rebuild` compares them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.history import History


@dataclass(frozen=True)
class Rebuilder:
    """A contestant: `rebuild` is what is timed, and returns how many events it went through.

    `prepare` is run before each of its turns and not timed. `check` raises if what came out is wrong.
    """

    name: str
    prepare: Callable[[str], None]
    rebuild: Callable[[str], int]
    check: Callable[[str, History], None]
    packages: tuple[str, ...] = ()


class WrongResult(Exception):
    """A rebuild ended with other rows than the log holds messages."""
