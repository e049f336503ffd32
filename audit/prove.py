"""`minutebook checkpoint`, `prove` and `check`: what the log says of itself, signed, and proofs of single messages."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from audit.command import LOG_SETTINGS, Command, CommandFailed
from audit.database import database
from audit.keys import verifier_key
from audit.output import Output
from eventstore.leases import Leases
from eventstore.reader import Reader
from eventstore.transparency.checkpoints import Checkpoint, Checkpointer, Checkpoints, ForeignKey, SignedCheckpoint
from eventstore.transparency.keys import kept_key
from eventstore.transparency.notes import SigningKey, VerifierKey, encode_base64
from eventstore.transparency.proofs import Opening, Proof
from eventstore.transparency.published import Published
from settings import Settings

_SUFFIX = ".tlog-proof"
_MESSAGES = frozenset({"MessageSent", "DirectMessageSent"})
# Beyond the interval, for the server to sign.
_GRACE_SECONDS = 2.0
_LOOK_SECONDS = 0.1
# Proofs and openings are a few kilobytes.
_LARGEST_FILE = 1 << 20


def _checkpoint(settings: Settings, out: Output) -> None:
    """Print the newest checkpoint of the log.

    It is a signed note (C2SP tlog-checkpoint) that says what the log is at a size. Whoever keeps it can show later,
    with `verify --checkpoint`, whether anything that stood in the log then was changed since.
    """
    with database(settings) as conninfo:
        newest, key = asyncio.run(_newest(conninfo))
    if newest is None or key is None:
        raise CommandFailed("no checkpoint was signed yet: a running server signs the first one")
    if not out.is_json:
        out.write(newest.note.encode())
        return
    checkpoint = Checkpoint.open(newest.note, key)
    out.record(
        {
            "origin": checkpoint.origin,
            "size": checkpoint.size,
            "root": encode_base64(checkpoint.root),
            "signed_at": newest.signed_at,
            "key": str(key),
            "note": newest.note,
        }
    )


async def _newest(conninfo: str) -> tuple[SignedCheckpoint | None, VerifierKey | None]:
    async with Reader(conninfo, size=1) as reader:
        checkpoints = Checkpoints(reader)
        return await checkpoints.newest(), await checkpoints.verifier_key()


def _prove(settings: Settings, out: Output, message_id: int, place: Path) -> None:
    """Write a proof that a message stands in the log.

    It is a file `message-<id>.tlog-proof` (C2SP tlog-proof), and beside it `message-<id>.json` with the message itself.
    Both together are checked by `check`, by anybody and offline. A message of the last few seconds takes a checkpoint
    that covers it: it is signed at once where the log's key is at hand, and else waited for.
    """
    with database(settings) as conninfo:
        proof, opening, key = asyncio.run(_proven(settings, conninfo, message_id))
    proof_file, opening_file = _files(place, message_id)
    proof_file.write_text(proof.text())
    opening_file.write_bytes(opening.json())
    size = Checkpoint.open(proof.checkpoint, key).size
    out.record(
        {
            "message_id": message_id,
            "proof": str(proof_file),
            "message": str(opening_file),
            "checkpoint": size,
            "key": str(key),
        }
    )


async def _proven(settings: Settings, conninfo: str, message_id: int) -> tuple[Proof, Opening, VerifierKey]:
    async with Reader(conninfo, size=1) as reader:
        published = Published(reader)
        opening = await published.opening(message_id)
        if opening.type not in _MESSAGES:
            raise CommandFailed(f"{message_id} is no message, but {opening.type}")
        if not await published.checkpoints.covers(message_id):
            await _cover(settings, conninfo, published.checkpoints, message_id)
        key = await published.checkpoints.verifier_key()
        if key is None:
            raise CommandFailed("the log has lost its key: run `minutebook verify`")
        return *await published.prove(message_id), key


async def _cover(settings: Settings, conninfo: str, checkpoints: Checkpoints, position: int) -> None:
    """Returns once a checkpoint covers the position: by our own hand if we can, and else by a server's."""
    key = _key_at_hand(settings)
    if key is not None:
        try:
            await Checkpointer(conninfo, key, settings.checkpoint_interval).sign_now()
        except ForeignKey:
            pass  # the servers have the right one
        else:
            return
    await _wait(conninfo, checkpoints, position, settings.checkpoint_interval + _GRACE_SECONDS)


def _key_at_hand(settings: Settings) -> SigningKey | None:
    try:
        return kept_key(settings.log_key, settings.data_dir)
    except PermissionError:
        # Auditors may well see the log, and not what the server keeps to itself.
        return None


async def _wait(conninfo: str, checkpoints: Checkpoints, position: int, seconds: float) -> None:
    leases = Leases(conninfo, "")
    try:
        if not await leases.alive():
            raise CommandFailed(
                "no checkpoint covers it yet: the log's key is not at hand, and no server runs to sign one"
            )
    finally:
        await leases.close()
    try:
        async with asyncio.timeout(seconds):
            while not await checkpoints.covers(position):  # noqa: ASYNC110 - another process signs
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise CommandFailed("no checkpoint covers it yet, and no server has signed one meanwhile") from None


def _files(place: Path, message_id: int) -> tuple[Path, Path]:
    """Where the proof and the message go: into a folder by their usual names, or by the name given for the proof."""
    if place.suffix == _SUFFIX:
        return place, place.with_suffix(".json")
    if not place.is_dir():
        raise CommandFailed(f"there is no folder {place}: give one, or a file that ends in {_SUFFIX}")
    return place / f"message-{message_id}{_SUFFIX}", place / f"message-{message_id}.json"


def _check(_settings: Settings, out: Output, proof: Path, message: Path | None, key: VerifierKey) -> None:
    """Check a proof: whether a message stands in the log of this key, word for word.

    It needs the proof, the message beside it and the log's verifier key (`/log/key`), but no database, no settings and
    no network. The key should come from somebody whom you trust, not from where the proof came from.
    """
    try:
        text = _read(proof).decode()
    except UnicodeDecodeError:
        raise CommandFailed(f"{proof} is no proof: it is not even a text") from None
    opening = Opening.parse(_read(message or proof.with_suffix(".json")))
    checkpoint = Proof.parse(text).check(opening, key)
    out.text("The log has recorded this, and nothing of it was changed since:")
    out.record(
        {
            "log": checkpoint.origin,
            "checkpoint": checkpoint.size,
            "position": opening.position,
            "recorded_at": opening.recorded_at,
            "type": opening.type,
            "stream": opening.stream,
            "data": opening.data,
            "metadata": opening.metadata,
        }
    )


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise CommandFailed(f"there is no file {file}")
    with file.open("rb") as opened:
        content = opened.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise CommandFailed(f"{file} is too large to be a proof or a message")
    return content


_FILE = click.Path(path_type=Path)

CHECKPOINT = Command("checkpoint", _checkpoint, examples=("checkpoint --no-json > checkpoint.txt",))
PROVE = Command(
    "prove",
    _prove,
    (
        click.Argument(["message_id"], type=click.IntRange(min=1, max=2**63 - 1)),
        click.Option(
            ["--out", "place"],
            type=_FILE,
            default=".",
            help="Folder, or the proof's file.  [default: the current folder]",
        ),
    ),
    examples=("prove 1234", "prove 1234 --out evidence/"),
    settings=LOG_SETTINGS | {"log_key", "checkpoint_interval"},
)
CHECK = Command(
    "check",
    _check,
    (
        click.Argument(["proof"], type=_FILE),
        click.Option(["--message"], type=_FILE, help="The message's file.  [default: the proof's name with .json]"),
        click.Option(["--key"], type=verifier_key, metavar="VKEY", required=True, help="The verifier key of the log."),
    ),
    examples=("check message-1234.tlog-proof --key example.com/minutes+0123abcd+A…",),
    settings=None,
)
