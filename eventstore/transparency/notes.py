"""Signed notes: a text, and below it who signed it (C2SP signed-note), by Ed25519 alone.

    <the text, whose last line ends too>
                                                   an empty line
    — <key name> base64(key id || signature)       a line for each signature

A key's id is the first four bytes of `SHA-256(name || "\\n" || 1 || public key)`. Keys are told as texts:

    <name>+<key id in hex>+base64(1 || public key)                  a verifier key, for everybody
    PRIVATE+KEY+<name>+<key id in hex>+base64(1 || private key)     a signing key (Go's form of it), for nobody else
"""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from eventstore.errors import LogError

MAX_SIGNATURES = 64
_ED25519 = b"\1"
_PRIVATE = "PRIVATE+KEY+"


class BadNote(LogError):
    """A note is none, or nobody whom we know has signed it; the message says which in one line."""


class BadKey(LogError):
    """A text is not the key that it should be; the message never repeats it."""


@dataclass(frozen=True)
class VerifierKey:
    """The public half of a key and its name: by it everybody can check what the key has signed."""

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(_ED25519 + self.public_key)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key that the text tells; raises `BadKey`."""
        name, public_key = _parse(text.strip(), "verifier key")
        key = cls(name, public_key)
        if str(key) != text.strip():
            raise BadKey("this is no verifier key: its id belongs to another one")
        return key

    @property
    def key_id(self) -> bytes:
        """The four bytes that stand before this key's signatures."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:4]

    def verify(self, text: str, signature: bytes) -> bool:
        """Whether this key has signed the text so."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A key that signs notes, and its name."""

    name: str
    _private_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_name(self.name)

    def __str__(self) -> str:
        key_id = self.verifier_key.key_id.hex()
        return f"{_PRIVATE}{self.name}+{key_id}+{encode_base64(_ED25519 + self._private_key)}"

    @classmethod
    def generate(cls, name: str) -> Self:
        """A new key."""
        return cls(name, secrets.token_bytes(32))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key that the text tells; raises `BadKey`."""
        text = text.strip()
        if not text.startswith(_PRIVATE):
            raise BadKey("this is no signing key: it does not begin with PRIVATE+KEY+")
        key = cls(*_parse(text.removeprefix(_PRIVATE), "signing key"))
        if str(key) != text:
            raise BadKey("this is no signing key: its id belongs to another one")
        return key

    @property
    def verifier_key(self) -> VerifierKey:
        """By what others check this key's signatures."""
        return VerifierKey(
            self.name, Ed25519PrivateKey.from_private_bytes(self._private_key).public_key().public_bytes_raw()
        )

    def sign(self, text: str) -> str:
        """The text as a note with this key's signature. Raises `BadNote` for a text that cannot be one."""
        _check_text(text)
        if not text.endswith("\n"):
            raise BadNote("a note's text must end in a line break")
        signature = Ed25519PrivateKey.from_private_bytes(self._private_key).sign(text.encode())
        return f"{text}\n— {self.name} {encode_base64(self.verifier_key.key_id + signature)}\n"


class Signature(NamedTuple):
    """One signature of a note: what it says of whose it is, and the signature itself."""

    name: str
    key_id: bytes
    signature: bytes


def open_note(note: str, keys: Iterable[VerifierKey]) -> str:
    """The text of a note that at least one of the keys has signed, to its last line break.

    Raises `BadNote` when none has, when a signature of one of them is wrong, and for what is no note. Signatures of
    unknown keys are passed over.
    """
    text, signatures = split_note(note)
    known = {(key.name, key.key_id): key for key in keys}
    signed = False
    for name, key_id, signature in signatures:
        key = known.get((name, key_id))
        if key is None:
            continue
        if not key.verify(text, signature):
            raise BadNote(f"the signature of {name} is wrong: this is not what the key has signed")
        signed = True
    if not signed:
        raise BadNote("none of the known keys has signed this")
    return text


def split_note(note: str) -> tuple[str, list[Signature]]:
    """The text of a note and its signatures, none of which is checked; raises `BadNote`."""
    _check_text(note)
    text, separator, below = note.rpartition("\n\n")
    if not separator or not below.endswith("\n"):
        raise BadNote("this is no signed note")
    lines = below[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise BadNote(f"a note of more than {MAX_SIGNATURES} signatures is not looked at")
    return f"{text}\n", list(_signatures(lines))


def encode_base64(content: bytes) -> str:
    """Base 64 (RFC 4648, section 4)."""
    return b64encode(content).decode()


def decode_base64(text: str) -> bytes:
    """What a text in base 64 tells; raises `ValueError`, for each of the other ways to tell the same too."""
    content = b64decode(text.encode(), validate=True)
    if encode_base64(content) != text:
        raise ValueError("not the one way to write it")
    return content


def _signatures(lines: Iterable[str]) -> Iterator[Signature]:
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        try:
            content = decode_base64(encoded)
        except ValueError:
            content = b""
        if dash != "—" or not _is_name(name) or len(content) < 5:
            raise BadNote("this is no signed note: a signature is not readable")
        yield Signature(name, content[:4], content[4:])


def _parse(text: str, what: str) -> tuple[str, bytes]:
    """The name and the 32 bytes of a key; whether its id is right is the caller's to check."""
    try:
        name, _, encoded = text.split("+", 2)
        content = decode_base64(encoded)
    except ValueError:
        raise BadKey(f"this is no {what}: it has not the form <name>+<id>+<key>") from None
    if content[:1] != _ED25519 or len(content) != 33:
        raise BadKey(f"this is no {what} for Ed25519")
    return name, content[1:]


def _is_name(name: str) -> bool:
    return bool(name) and not any(c == "+" or c.isspace() or _is_no_text(c) for c in name)


def _check_name(name: str) -> None:
    if not _is_name(name):
        raise BadKey("a key is named by a text without white space and without +")


def _check_text(text: str) -> None:
    if any(_is_no_text(character) and character != "\n" for character in text):
        raise BadNote("a note holds no control characters")


def _is_no_text(character: str) -> bool:
    """Whether this is a control character, or a surrogate, which UTF-8 has no form for."""
    return character < " " or "\ud800" <= character <= "\udfff"
