"""The servers that `bench.http` compares, and the world that each of them serves.

The world: 64 accounts, all of them members of five channels, and one channel more with 10,000 messages to read.
Endpoints, requests and answers are those of the contract (Button API V3).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

ACCOUNTS = 64
CHANNELS = ("announcements-of-the-house", "den", "kitchen", "library", "workshop")
CHATTED = "den"
ARCHIVE = "archive"
ARCHIVED = 10_000
READ = 50
TEXT = "So we settled on the second draft, with the changes of Monday, and the minutes go out tonight."


def username(number: int) -> str:
    """The name of account `number`, counted from 0."""
    return f"Listener {number}"


@dataclass(frozen=True)
class Running:
    """A server that takes requests; the tokens are those of its accounts, all of which are in all channels."""

    pid: int
    port: int
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Contestant:
    """A server: `serve(conninfo, folder)` runs it on an empty database with the world in it, `folder` being its own.

    `messages` is a statement that counts the messages that the database holds.
    """

    name: str
    serve: Callable[[str, Path], AbstractContextManager[Running]]
    messages: str
    packages: tuple[str, ...] = ()
