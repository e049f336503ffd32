"""Parameters in Postgres's binary form.

Arrays are packed in one go: adapting the hundreds of values of a batch one by one costs more than the statement does.
The layout is the server's (`array_recv`): dimensions, a null flag, the elements' type, length and lower bound, then
each element behind its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct, pack

_HEADER = Struct("!iiIii").pack
_LENGTH = Struct("!i").pack
_BIGINT = Struct("!q").pack

_BYTEA_OID, _BIGINT_OID, _TEXT_OID = 17, 20, 25


def text_array(values: Sequence[bytes]) -> bytes:
    """`text[]` of UTF-8 texts."""
    return _array(_TEXT_OID, values)


def bytea_array(values: Sequence[bytes]) -> bytes:
    """`bytea[]`."""
    return _array(_BYTEA_OID, values)


def bigint_array(values: Sequence[int]) -> bytes:
    """`bigint[]`."""
    count = len(values)
    # Every element is (length 8, value): one format for all of them.
    flat = [item for value in values for item in (8, value)]
    return _HEADER(1, 0, _BIGINT_OID, count, 1) + pack("!" + "iq" * count, *flat)


def scalar(value: object) -> bytes:
    """A `bigint`, a `text`, or what is in its binary form already."""
    if isinstance(value, int):
        return _BIGINT(value)
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"no binary form for {type(value).__name__}")


def _array(element_oid: int, elements: Sequence[bytes]) -> bytes:
    parts = [_HEADER(1, 0, element_oid, len(elements), 1)]
    add = parts.append
    for element in elements:
        add(_LENGTH(len(element)))
        add(element)
    return b"".join(parts)
