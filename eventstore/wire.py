"""Postgres arrays in binary form, packed in one go.

psycopg dumps a list element by element in Python; for the hundreds of values of a batch that costs more than
the statement. The layout is the server's (`array_recv`): dimensions, a null flag, the element's type, length and
lower bound, then each element behind its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct, pack
from typing import ClassVar

from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEADER = Struct("!iiIii")
_LENGTH = Struct("!i").pack


class Packed:
    """An array already in the server's binary form."""

    element_oid: ClassVar[int]
    array_oid: ClassVar[int]
    __slots__ = ("payload",)

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    @classmethod
    def _of(cls, count: int, elements: Iterable[bytes]) -> bytes:
        parts = [_HEADER.pack(1, 0, cls.element_oid, count, 1)]
        add = parts.append
        for element in elements:
            add(_LENGTH(len(element)))
            add(element)
        return b"".join(parts)


class TextArray(Packed):
    """`text[]` of UTF-8 texts given as bytes."""

    element_oid, array_oid = 25, 1009

    def __init__(self, values: Sequence[bytes]) -> None:
        super().__init__(self._of(len(values), values))


class ByteaArray(Packed):
    """`bytea[]`."""

    element_oid, array_oid = 17, 1001

    def __init__(self, values: Sequence[bytes]) -> None:
        super().__init__(self._of(len(values), values))


class BigintArray(Packed):
    """`bigint[]`."""

    element_oid, array_oid = 20, 1016

    def __init__(self, values: Sequence[int]) -> None:
        count = len(values)
        # Every element is (length 8, value): one format for all of them.
        flat = [item for value in values for item in (8, value)]
        super().__init__(_HEADER.pack(1, 0, self.element_oid, count, 1) + pack("!" + "iq" * count, *flat))


class _PackedDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Packed) -> bytes:
        return obj.payload


class _TextArrayDumper(_PackedDumper):
    oid = TextArray.array_oid


class _ByteaArrayDumper(_PackedDumper):
    oid = ByteaArray.array_oid


class _BigintArrayDumper(_PackedDumper):
    oid = BigintArray.array_oid


def register(context: AdaptContext) -> None:
    """Teaches a connection to send packed arrays."""
    context.adapters.register_dumper(TextArray, _TextArrayDumper)
    context.adapters.register_dumper(ByteaArray, _ByteaArrayDumper)
    context.adapters.register_dumper(BigintArray, _BigintArrayDumper)
