"""Canonical JSON: one text for one value, so that a hash of it means something.

Keys are sorted by code point, there is no white space, text is UTF-8 and escaped only where JSON demands it.
Floats are refused, since their text depends on who prints them; so is NUL, which Postgres cannot hold in a text.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from eventstore.errors import InvalidEvent

_encoder = msgspec.json.Encoder(order="sorted")


def encode(value: object) -> bytes:
    """Canonical JSON of `value`: a struct, or what JSON holds but floats.

    Raises `InvalidEvent` for a float, a NUL, a lone surrogate, or a value that JSON has no form for.
    """
    try:
        plain = msgspec.to_builtins(value, order="sorted", str_keys=True)
        text = _encoder.encode(plain)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidEvent(f"not representable as canonical JSON: {error}") from error
    # Nearly all values are flat, of texts and whole numbers: one look at the types settles those.
    if not (type(plain) is dict and _PLAIN.issuperset(map(type, plain.values()))):
        _refuse_floats(plain)
    # The escape may be part of a longer one (an escaped backslash, then u0000): it only calls for a closer look.
    if b"\\u0000" in text and any(isinstance(part, str) and "\0" in part for part in _parts(plain)):
        raise InvalidEvent("a text holds a NUL character")
    return text


_PLAIN = frozenset({str, int, bool, type(None)})


def _refuse_floats(value: object) -> None:
    if any(isinstance(part, float) for part in _parts(value)):
        raise InvalidEvent("a float has no canonical form")


def _parts(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _parts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _parts(item)
    else:
        yield value
