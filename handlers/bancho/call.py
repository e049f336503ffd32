"""A call of the Bancho API, free of HTTP: its arguments, and what it is answered by."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import msgspec

from chat.refusals import Malformed
from handlers.services import Services

MAX_ID = 2**63 - 1

_INTEGER = re.compile(r"[+-]?[0-9]+")


class Done(msgspec.Struct, frozen=True):
    """An answer without a result: a status, and the message that describes it."""

    status: int = 200
    message: str = "ok"


class Result(msgspec.Struct, frozen=True):
    """An answer with a result. The keys stand in the document's order."""

    result: bool | int
    status: int = 200
    message: str = "ok"


Answer = Done | Result


class WrongKey(Exception):
    """`k` is missing, or it is not the key."""


class MissingArguments(Exception):
    """An argument that is required is missing or empty, or an id is no integer."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request: the values of each argument as bytes, percent-decoded, the request's id, the caller's address."""

    arguments: Mapping[str, Sequence[bytes]]
    services: Services
    request_id: str
    address: str

    def text(self, name: str) -> str | None:
        """An argument as Unicode, None if it is missing or empty; of several the last one. Raises `Malformed`."""
        value = self._raw(name)
        if b"\0" in value:
            raise Malformed(name, "must not hold a NUL character")
        try:
            return value.decode() or None
        except UnicodeDecodeError:
            raise Malformed(name, "is not valid UTF-8") from None

    def required_text(self, name: str) -> str:
        """As `text`; raises `MissingArguments` too."""
        value = self.text(name)
        if value is None:
            raise MissingArguments
        return value

    def required_id(self, name: str) -> int | None:
        """An argument that is an integer, None if it is one that no account can have. Raises `MissingArguments`."""
        digits = self._raw(name).decode("ascii", "replace")
        if not _INTEGER.fullmatch(digits):
            raise MissingArguments
        digits = digits.removeprefix("+").lstrip("0") or "0"
        # Python converts no very long strings of digits, and no id has more than these.
        number = int(digits) if len(digits) <= len(str(MAX_ID)) else -1
        return number if 0 < number <= MAX_ID else None

    def check_key(self) -> None:
        """Raises `WrongKey` unless `k` is the key; it takes as long for every wrong one."""
        key = self.services.ci_key
        if key is None or not hmac.compare_digest(sha256(self._raw("k")).digest(), sha256(key.encode()).digest()):
            raise WrongKey

    def _raw(self, name: str) -> bytes:
        return self.arguments[name][-1] if name in self.arguments else b""


# An endpoint: from a call to its answer. It raises what others put into words.
Endpoint = Callable[[Call], Awaitable[Answer]]
