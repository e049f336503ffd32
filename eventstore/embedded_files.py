"""Files and folders of the embedded Postgres: private ones, given to its OS user, replaced whole."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path

from eventstore.embedded_processes import Account, PostgresStartError

PORT = "5432"  # only names the socket; there is no TCP
SOCKET = f".s.PGSQL.{PORT}"
_TEMPORARY_SOCKET_PREFIX = "minutebook-"
_LONGEST_SOCKET_PATH = 100  # bytes; the kernels' limits are 103 and 107


def fits(folder: Path) -> bool:
    """Whether a socket in `folder` can be made, and named in a connection string and in the server's settings."""
    path = os.fsencode(folder / SOCKET)
    return len(path) <= _LONGEST_SOCKET_PATH and re.fullmatch(rb"[A-Za-z0-9_./-]+", path) is not None


def temporary_folder(account: Account) -> Path:
    """A new private folder with a short and plain name."""
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY_SOCKET_PREFIX))
    if not fits(folder):
        folder.rmdir()
        raise PostgresStartError(
            f"{folder.parent} is too long for Postgres's socket, or not plain: set TMPDIR to another"
        )
    make_private(folder, account)
    return folder


def is_our_temporary(folder: Path, account: Account) -> bool:
    """Whether the folder is one that `temporary_folder` made for this user, and still private."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == account.uid and found.st_mode & 0o077 == 0
    return private and folder.name.startswith(_TEMPORARY_SOCKET_PREFIX)


def remove_socket(folder: Path) -> None:
    """Remove the socket in the folder, and its lock file, if they are there."""
    for name in (SOCKET, f"{SOCKET}.lock"):
        (folder / name).unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove a temporary folder with the socket in it; one that holds anything else stays."""
    with contextlib.suppress(OSError):  # somebody else's file in it
        remove_socket(folder)
        folder.rmdir()


def make_private(folder: Path, account: Account) -> None:
    """Give the folder to the user, and let nobody else in."""
    descriptor = os.open(folder, os.O_DIRECTORY | os.O_NOFOLLOW)  # a link put there must not be followed
    try:
        give(descriptor, account)
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def give(what: int | Path, account: Account) -> None:
    """Make the user own it, when we are root; otherwise it is ours, and we are that user."""
    if os.geteuid() == 0:
        os.chown(what, account.uid, account.gid)


def replace_text(path: Path, text: str, account: Account) -> None:
    """Write the file anew if it differs. It is never opened for writing: its folder is another OS user's."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_text() == text:
            return
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        give(descriptor, account)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    Path(temporary).replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the folder's entries to disk."""
    descriptor = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
