"""Pids: by which a client that comes back shows which connection it had.

A pid is as good as a token for the connection that it was given to, so the log holds its digest only. It is signed,
so that one can be told to be ours that the log has never heard of: of a client that had not registered yet.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from collections.abc import Callable
from hashlib import sha256

_RANDOM, _TIME, _SIGNATURE = 16, 6, 16


class Pids:
    """Makes pids and reads them again, by a key that all nodes share. `clock` is in seconds since the epoch."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._key = hmac.digest(secret, b"minutebook pids", sha256)
        self._clock = clock

    def new(self) -> str:
        """A pid that nobody else has."""
        body = secrets.token_bytes(_RANDOM) + int(self._clock()).to_bytes(_TIME, "big")
        return _text(body + self._signature(body))

    def age(self, pid: object) -> float | None:
        """How many seconds ago a pid was made; None for what is none of ours."""
        if not isinstance(pid, str) or len(pid) > 100 or not pid.isascii():
            return None
        try:
            raw = base64.urlsafe_b64decode(pid + "=" * (-len(pid) % 4))
        except ValueError:
            return None
        body, signature = raw[: _RANDOM + _TIME], raw[_RANDOM + _TIME :]
        if len(body) < _RANDOM + _TIME or not hmac.compare_digest(signature, self._signature(body)):
            return None
        # Base64 has bits to spare at its end: of all the texts that say the same only one is a pid.
        if _text(raw) != pid:
            return None
        return self._clock() - int.from_bytes(body[_RANDOM:], "big")

    def _signature(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, sha256)[:_SIGNATURE]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def connection_id(pid: str) -> str:
    """What the log calls the connection of a pid."""
    return sha256(pid.encode()).hexdigest()[:32]
