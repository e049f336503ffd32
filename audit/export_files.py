"""Files of exports: compressed as their names say, whole or not there, and for their owner alone."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkstemp
from typing import IO, BinaryIO, cast

import zstandard

from audit.command import CommandFailed

STANDARD = "-"
# Half a per cent larger than at the highest level, and several times as fast.
_GZIP_LEVEL = 6
_ZSTD_LEVEL = 3
# No line of an export is longer; a file without line breaks is not read into memory whole.
_LONGEST_LINE = 16 << 20
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)

Write = Callable[[bytes], object]


@contextmanager
def new_file(name: str, *, replace: bool) -> Iterator[Write]:
    """What writes into a new file, which has its name only once it is whole; an existing one only if told to.

    Raises `CommandFailed` if there is a file of this name that is to stay.
    """
    path = Path(name)
    _check_name(path, replace=replace)
    # By a name that nobody else writes to, were it another export to the same file; its owner's alone, too.
    descriptor, unfinished = mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with _compressing(file, path) as stream:
                yield stream.write
            file.flush()
            os.fsync(file.fileno())
        _check_name(path, replace=replace)
        Path(unfinished).replace(path)
    finally:
        Path(unfinished).unlink(missing_ok=True)


@contextmanager
def lines_of(name: str) -> Iterator[Iterator[bytes]]:
    """The lines of a file, `-` for standard input, with their line breaks.

    Raises `CommandFailed` for a file that cannot be decompressed, when that shows.
    """
    with ExitStack() as stack:
        file = sys.stdin.buffer if name == STANDARD else stack.enter_context(Path(name).open("rb"))
        yield _lines(stack.enter_context(_decompressing(file, Path(name))), name)


def _lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    try:
        yield from iter(lambda: stream.readline(_LONGEST_LINE), b"")
    except _DAMAGED as error:
        raise CommandFailed(f"{name} is damaged or cut off: {error}") from error


def _check_name(path: Path, *, replace: bool) -> None:
    if path.exists() and not path.is_file():
        raise CommandFailed(f"{path} is no ordinary file: `-` writes to standard output")
    if path.exists() and not replace:
        raise CommandFailed(f"{path} exists already: give another name, or --force")


@contextmanager
def _compressing(file: BinaryIO, path: Path) -> Iterator[IO[bytes]]:
    if path.suffix == ".gz":
        # Without a time and a name: the same log makes the same file.
        with gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0) as stream:
            yield cast(IO[bytes], stream)
    elif path.suffix == ".zst":
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
        with compressor.stream_writer(file, closefd=False) as stream:
            yield cast(IO[bytes], stream)
    else:
        yield file


@contextmanager
def _decompressing(file: BinaryIO, path: Path) -> Iterator[IO[bytes]]:
    if path.suffix == ".gz":
        with gzip.GzipFile(fileobj=file, mode="rb") as stream:
            yield cast(IO[bytes], stream)
    elif path.suffix == ".zst":
        with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False) as reader:
            yield io.BufferedReader(cast(io.RawIOBase, reader))
    else:
        yield file
