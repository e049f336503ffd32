"""Where the key that signs a log's checkpoints is kept."""

from __future__ import annotations

from pathlib import Path

from eventstore.transparency.notes import BadKey, SigningKey

KEY_FILE = "log.key"


def kept_key(given: str | None, data_dir: Path) -> SigningKey | None:
    """The key as it was given, or else as the data folder holds it; None if neither. Raises `BadKey`."""
    if given is not None:
        return _parsed(given, "log_key")
    file = data_dir / KEY_FILE
    # What is no text is no key either.
    return _parsed(file.read_text(errors="replace"), str(file)) if file.exists() else None


def _parsed(text: str, place: str) -> SigningKey:
    try:
        return SigningKey.parse(text)
    except BadKey as error:
        raise BadKey(f"{place}: {error}") from None
