"""Which of several workers on one machine a request is for: sessions live in one of them, and so do its counts."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from http1.handover import Arrivals, Departures, Neighbours
from realtime.engineio import session_asked_for

_SEPARATOR = "."
# Both, as with all paths here.
_METRICS = ("/metrics", "/metrics/")


def session_prefix(worker: int) -> str:
    """What the session ids of a worker begin with."""
    return f"{worker}{_SEPARATOR}"


def neighbours(arrivals: Arrivals, others: Mapping[int, Departures], path: str) -> Neighbours:
    """The other workers, for sessions at a path."""
    by_name = {str(number): departures for number, departures in others.items()}

    def whose(target: str) -> Departures | None:
        worker = _worker(target, path)
        # What nobody is called is for this one to refuse.
        return None if worker is None else by_name.get(worker)

    return Neighbours(arrivals, whose)


def _worker(target: str, path: str) -> str | None:
    sid = session_asked_for(target, path)
    if sid is not None:
        name, separator, _ = sid.partition(_SEPARATOR)
        return name if separator else None
    at, _, query = target.partition("?")
    return dict(parse_qsl(query)).get("worker") if at in _METRICS else None
