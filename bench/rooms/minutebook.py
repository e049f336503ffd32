"""Ours: the public API of `realtime`, on the HTTP server that the house uses, with nothing else in the process."""

from __future__ import annotations

import sys

from bench.rooms import TEXT, TEXT_VARIABLE, Command, Contestant
from bench.rounds import OURS


def _prepare() -> Command:
    return Command([sys.executable, "-m", "bench.rooms.minutebook_server"], {TEXT_VARIABLE: TEXT})


SERVER = Contestant(OURS, _prepare)
