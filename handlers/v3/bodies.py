"""The bodies of V3 requests, one struct for each shape, and how a bad one is told (contract, "V3, where the document
is silent")."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from chat import rules
from chat.names import channel_name
from chat.refusals import Malformed

MAX_COUNT = 1000
MAX_ID = 2**63 - 1

Number = int | str


class Body(msgspec.Struct, frozen=True):
    """A request's body. Keys that it does not name are ignored."""

    def check(self) -> None:
        """Raises `Malformed` for what the types alone do not tell."""


class Credentials(Body, frozen=True):
    """`register`, `login`, `generatetoken`, `gettoken`."""

    username: str
    password: str


class WithToken(Body, frozen=True):
    """What all others have in common, and `getchannels` as a whole."""

    token: str


class ReadNewest(WithToken, frozen=True):
    """`getmessagesforeveryone`, `getdms`."""

    count: Number

    def check(self) -> None:
        whole_count(self.count)


class ReadSent(WithToken, frozen=True):
    """`getmysentmessages`: the document gives it no count, so it may be left out. And `deliveries`, likewise."""

    count: Number = MAX_COUNT

    def check(self) -> None:
        whole_count(self.count)


class ReadChannel(WithToken, frozen=True):
    """`readmessagesfromchannel` in both its uses: one message by its id, or the newest of a channel."""

    message_id: Number | UnsetType = UNSET
    name: str | UnsetType = UNSET
    count: Number | UnsetType = UNSET

    def check(self) -> None:
        if self.message_id is not UNSET:
            whole_id(self.message_id)
            return
        if self.name is UNSET:
            raise Malformed("name", "is missing")
        if self.count is UNSET:
            raise Malformed("count", "is missing")
        whole_count(self.count)


class DeleteMessage(WithToken, frozen=True):
    """`deletemessage`."""

    message_id: Number

    def check(self) -> None:
        whole_id(self.message_id)


class MakeChannel(WithToken, frozen=True):
    """`makechannel`."""

    name: str

    def check(self) -> None:
        rules.check_channel_name(channel_name(self.name))


class AddUser(WithToken, frozen=True):
    """`addusertochannel`."""

    name: str
    username: str


class SendMessage(WithToken, frozen=True):
    """`sendmessage`."""

    message: str
    channel: str

    def check(self) -> None:
        rules.check_text("message", self.message)


class SendDirectMessage(WithToken, frozen=True):
    """`senddm`."""

    username: str
    message: str

    def check(self) -> None:
        rules.check_text("message", self.message)


class SendToDiscord(WithToken, frozen=True):
    """`senddcmsgwithtoken`."""

    message: str

    def check(self) -> None:
        rules.check_text_for_discord("message", self.message)


class SendToSomebodyOnDiscord(SendToDiscord, frozen=True):
    """`senddcmsg`: `channel` names a bridged channel, or a person."""

    channel: str


def whole_count(value: Number) -> int:
    """How many are asked for: 1 to 1,000, cut to that above; raises `Malformed`."""
    return min(_whole("count", value, MAX_ID), MAX_COUNT)


def whole_id(value: Number) -> int:
    """A message's id, a whole number from 1; raises `Malformed`."""
    number = _whole("message_id", value, MAX_ID + 1)
    if number > MAX_ID:
        raise Malformed("message_id", "is out of range")
    return number


_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")


def idempotency_key(field: str, key: str) -> str:
    """A key by which a repeat is known; raises `Malformed`."""
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise Malformed(field, "must be 1 to 255 visible ASCII characters")
    return key


def _whole(field: str, value: Number, most: int) -> int:
    """A whole number from 1, given as such or as a string of digits; `most` if it is larger."""
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]+", value):
            raise Malformed(field, "must be a whole number or a string of digits")
        digits = value.lstrip("0")
        # Python refuses to convert very long strings of digits; how long they are is enough to know.
        value = int(digits or "0") if len(digits) < 30 else most
    if value < 1:
        raise Malformed(field, "is out of range: must be at least 1")
    return min(value, most)


B = TypeVar("B", bound=Body)

_FIELD = re.compile(r"`\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]*)`")
_KINDS = {
    "str": "a string",
    "int | str": "a whole number or a string of digits",
    "object": "an object",
}


class Decoder(msgspec.Struct, frozen=True):
    """Decodes and checks bodies of one type; raises `Malformed` that names the field and what is wrong with it."""

    decoder: msgspec.json.Decoder[Body]

    def __call__(self, raw: bytes) -> Body:
        """The body that these bytes are."""
        try:
            # The decoder looks into no text that it skips, so it would overlook a bad one there.
            body = self.decoder.decode(raw.decode())
        except msgspec.ValidationError as error:
            raise _told(str(error)) from None
        except UnicodeDecodeError:
            raise Malformed("body", "is not valid UTF-8") from None
        except msgspec.DecodeError as error:
            _refuse_lone_surrogates(raw, self.decoder.type.__struct_fields__)
            raise Malformed("body", f"is not valid JSON ({error})") from None
        except RecursionError:
            raise Malformed("body", "is nested too deeply") from None
        # JSON text holds no NUL but in this escape; looking for it is cheaper than looking into every text. So is
        # looking for any escape first: one byte is found much faster than six are.
        if b"\\" in raw and b"\\u0000" in raw:
            _refuse_nul(body)
        body.check()
        return body


def decoder(kind: type[Body]) -> Decoder:
    """The decoder of a type of body."""
    return Decoder(msgspec.json.Decoder(kind))


def _told(problem: str) -> Malformed:
    """msgspec's message in the contract's words."""
    missing = _MISSING.search(problem)
    if missing:
        return Malformed(missing[1], "is missing")
    found = _FIELD.search(problem)
    field = found[1] if found else ""
    if not field:
        return Malformed("body", "must be a JSON object")
    expected = re.search(r"Expected `([^`]*)`", problem)
    if expected is None:
        return Malformed(field, "is out of range")
    return Malformed(field, f"must be {_KINDS.get(expected[1], expected[1])}")


def _refuse_lone_surrogates(raw: bytes, fields: Iterable[str]) -> None:
    """Names the field whose text holds half a character, which is JSON by its grammar, but no Unicode."""
    try:
        # This one keeps such halves, where msgspec gives up.
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return
    for field in fields if isinstance(body, dict) else ():
        value = body.get(field)
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise Malformed(field, "must not hold a lone surrogate")


def _refuse_nul(body: Body) -> None:
    for field in body.__struct_fields__:
        value = getattr(body, field)
        if isinstance(value, str) and "\0" in value:
            raise Malformed(field, "must not hold a NUL character")
