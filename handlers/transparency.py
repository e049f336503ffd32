"""The log as others follow it and check it: `/log/checkpoint`, `/log/tile/…` (C2SP tlog-tiles), `/log/key`.

Everybody may read it: a tile is hashes, a bundle of entries the events' headers, and neither has what anybody wrote.
"""

from __future__ import annotations

import re

from tornado import web
from tornado.routing import URLSpec

from eventstore.transparency.published import Published
from eventstore.transparency.tiles import parse_tile_path
from handlers.http import JsonHandler
from handlers.services import Services

_TEXT = "text/plain; charset=utf-8"
_OCTETS = "application/octet-stream"
_LEVEL = re.compile("[0-9]|[1-5][0-9]|6[0-3]")
# What a checkpoint covers never changes.
_FOR_EVER = "public, max-age=31536000, immutable"


class LogHandler(JsonHandler):
    """Answers what it has, or that it is not there (yet)."""

    services: Services

    @property
    def published(self) -> Published:
        """Where it all comes from."""
        return self.services.published

    def give(self, content: str | bytes | None, kind: str, cache: str) -> None:
        """Sends the content; None is not found."""
        if content is None:
            raise web.HTTPError(404)
        self.set_header("Content-Type", kind)
        self.set_header("Cache-Control", cache)
        self.finish(content)


class NewestCheckpoint(LogHandler):
    """`/log/checkpoint`: the newest one, a signed note."""

    async def get(self) -> None:
        """Tells it; there is none before the first was signed."""
        with self.services.in_flight:
            newest = await self.published.checkpoints.newest()
            self.give(newest.note if newest else None, _TEXT, "no-cache")


class VerifierKey(LogHandler):
    """`/log/key`: by which key the checkpoints are signed (a vkey of C2SP signed-note)."""

    async def get(self) -> None:
        """Tells it; there is none before the first checkpoint was signed."""
        with self.services.in_flight:
            key = await self.published.checkpoints.verifier_key()
            self.give(f"{key}\n" if key else None, _TEXT, "no-cache")


class HashTile(LogHandler):
    """`/log/tile/<L>/<N>[.p/<W>]`: hashes of the tree."""

    async def get(self, level: str, path: str) -> None:
        """Tells them as far as a checkpoint covers them."""
        with self.services.in_flight:
            place = parse_tile_path(path)
            if place is None or not _LEVEL.fullmatch(level):
                raise web.HTTPError(404)
            self.give(await self.published.hash_tile(int(level), *place), _OCTETS, _FOR_EVER)


class EntryBundle(LogHandler):
    """`/log/tile/entries/<N>[.p/<W>]`: what the leaf hashes of a tile are made of."""

    async def get(self, path: str) -> None:
        """Tells the entries as far as a checkpoint covers them."""
        with self.services.in_flight:
            place = parse_tile_path(path)
            if place is None:
                raise web.HTTPError(404)
            self.give(await self.published.entries(*place), _OCTETS, _FOR_EVER)


def routes(services: Services) -> list[URLSpec]:
    """The routes of the published log, as C2SP has them: none with a trailing slash."""
    given = {"services": services}
    return [
        URLSpec(r"/log/checkpoint", NewestCheckpoint, given),
        URLSpec(r"/log/key", VerifierKey, given),
        URLSpec(r"/log/tile/entries/(.+)", EntryBundle, given),
        URLSpec(r"/log/tile/([^/]+)/(.+)", HashTile, given),
    ]
