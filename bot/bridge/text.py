"""What a text looks like on the other side: pure functions, from what was written here to Discord and back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

# Of one message on Discord (API reference, "Create Message"), in the units in which its own clients count: UTF-16's.
LIMIT = 2000

# Where a text may be cut, from the best kind of place to the worst; the cut is behind the match.
_PLACES = tuple(map(re.compile, (r"\n[ \t]*\n\s*", r"\n", r"[.!?…][\"')\]]*\s", r"\s")))
# A piece is at least this part of what would fit, or a worse kind of place is looked for.
_LEAST = 0.5

# What would end the bold print of a name, or hide a part of it.
_MARKDOWN = re.compile(r"([\\*`~|])")
_JOINER = "\u200d"


def outgoing(username: str, text: str) -> list[str]:
    """What somebody wrote, as the messages that it becomes on Discord: `**username**: text`, in parts if it is long.

    Each part has the name in front, or a second one could begin with that of somebody else. Each has at most 2,000
    UTF-16 units, none is blank, none ends with white space, which Discord would take away. A text is cut at a blank
    line, else the end of a line, else of a sentence, else between words; and where there is none of these, between
    characters.
    """
    name = _MARKDOWN.sub(r"\\\1", username)
    author = f"**{name}**: "
    return [author + part for part in _parts(text, LIMIT - _units(author))]


def incoming(content: str, attachment_urls: Iterable[str]) -> str:
    """What somebody wrote on Discord, with what they attached as links behind it, each on a line of its own."""
    return "\n".join(filter(None, [content, *attachment_urls]))


def _parts(rest: str, room: int) -> Iterator[str]:
    while rest := rest.strip():
        cut = _cut(rest, room)
        yield rest[:cut].rstrip()
        rest = rest[cut:]


def _cut(text: str, room: int) -> int:
    """Where the first part ends, which has room for so many units."""
    most = _fitting(text, room)
    if most == len(text):
        return most
    least = int(most * _LEAST)
    for place in _PLACES:
        # What fits may end right before the white space at which it is cut, which goes.
        ends = [match.end() for match in place.finditer(text, least, most + 1)]
        if ends:
            return min(ends[-1], most)
    return next((cut for cut in range(most, least, -1) if _is_between_characters(text, cut)), most)


def _fitting(text: str, room: int) -> int:
    """How many code points of the text fit."""
    for index, character in enumerate(text[: room + 1]):
        room -= _units(character)
        if room < 0:
            return index
    return len(text)


def _units(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)


def _is_between_characters(text: str, index: int) -> bool:
    """Whether a cut here leaves what readers see as one character whole, as far as a simple look tells (UAX 29)."""
    before, behind = text[index - 1], text[index]
    if before == _JOINER or behind == _JOINER or (_is_flag(before) and _is_flag(behind)):
        return False
    is_skin_tone = "\U0001f3fb" <= behind <= "\U0001f3ff"
    return not (is_skin_tone or unicodedata.category(behind) in ("Mn", "Mc", "Me"))


def _is_flag(character: str) -> bool:
    """Whether it is one of the letters of which two make a flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"
