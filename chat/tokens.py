"""Tokens, derived and not stored: `gettoken` must give one back, and the log must not hold it.

The token of an account's generation `g` is a UUID made of HMAC-SHA256(server secret, account id || g). Who reads the
log or the database sees its SHA-256 only; who has the server's secret can make every token.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from uuid import UUID


class TokenMint:
    """Derives tokens from the server's secret."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"minutebook tokens", sha256)

    def token(self, account_id: int, generation: int) -> str:
        """The account's token of this generation, counted from 1."""
        digest = hmac.digest(self._key, f"{account_id}:{generation}".encode(), sha256)
        return str(UUID(bytes=digest[:16], version=4))


def token_digest(token: str) -> str:
    """What the log and the read models keep of a token: its SHA-256 in hex."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
