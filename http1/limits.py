"""How long, how much and how many: what a client may ask of the server before it is cut off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of every connection; times in seconds, sizes in bytes.

    `idle` is how long a connection may be silent between two requests, `head` how long the head of one may take from
    its first byte on, `body` how long its body may take, `write` how long a client may take none of its answer.
    `linger` is how long what a refused client still sends is thrown away, so that it gets to read why. `tick` is
    how finely time is looked at. `ahead` is what is read of the next requests while one is being answered.
    """

    idle: float = 120.0
    head: float = 20.0
    body: float = 20.0
    write: float = 120.0
    linger: float = 2.0
    tick: float = 1.0
    head_size: int = 65_536
    header_count: int = 256
    body_size: int = 100 * 1024 * 1024
    ahead: int = 65_536
