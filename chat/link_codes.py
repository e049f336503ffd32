"""Codes by which an account shows on Discord that it is itself, made and not stored.

A code is the base32 of when it ends, of the account's id, and of an HMAC-SHA256 of both by a key that follows from the
server's secret. Who has one can link the account once, as long as it is good; who reads the log cannot make one.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256

import msgspec

GOOD_FOR_SECONDS = 10 * 60
_GROUP = 4
_LENGTH = 32
_ENDS_BYTES = 6
_ACCOUNT_BYTES = 5
_TAG_BYTES = 9


class LinkCode(msgspec.Struct, frozen=True):
    """A code as it is shown, in groups of letters and digits, and for how many seconds it is good."""

    code: str
    expires_in: int


class GoodCode(msgspec.Struct, frozen=True):
    """What a code says that is good: whose it is. `text` is the same however the code was typed."""

    text: str
    account_id: int


class LinkCodes:
    """Makes codes from the server's secret, and reads them. `now` is the clock by which they end."""

    def __init__(self, secret: bytes, now: Callable[[], datetime]) -> None:
        self._key = hmac.digest(secret, b"minutebook link codes", sha256)
        self._now = now

    def make(self, account_id: int) -> LinkCode:
        """A code for the account; no two are the same that are made in different milliseconds."""
        ends = self._milliseconds() + GOOD_FOR_SECONDS * 1000
        claim = ends.to_bytes(_ENDS_BYTES, "big") + account_id.to_bytes(_ACCOUNT_BYTES, "big")
        text = base64.b32encode(claim + self._tag(claim)).decode()
        return LinkCode("-".join(text[i : i + _GROUP] for i in range(0, _LENGTH, _GROUP)), GOOD_FOR_SECONDS)

    def read(self, code: str) -> GoodCode | None:
        """What a code says, typed in small letters or with other marks between them, too; None if it is not good."""
        text = "".join(filter(str.isalnum, code)).upper()
        if len(text) != _LENGTH:
            return None
        try:
            raw = base64.b32decode(text)
        except ValueError:
            return None
        claim, tag = raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(claim)):
            return None
        ends, account_id = claim[:_ENDS_BYTES], claim[_ENDS_BYTES:]
        if int.from_bytes(ends, "big") <= self._milliseconds():
            return None
        return GoodCode(text, int.from_bytes(account_id, "big"))

    def _tag(self, claim: bytes) -> bytes:
        return hmac.digest(self._key, claim, sha256)[:_TAG_BYTES]

    def _milliseconds(self) -> int:
        return int(self._now().timestamp() * 1000)
