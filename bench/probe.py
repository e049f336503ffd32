"""Probes: single requests at a steady pace, by one client, to see what a server's latency is meanwhile."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator

from bench.servers.process import ServerFailed


class Api:
    """A client of the REST API over one keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def post(self, endpoint: str, body: dict[str, object]) -> dict[str, object]:
        """The answer to a POST; raises `ServerFailed` if it is not 200 or 201."""
        self._connection.request("POST", f"/api/v3/{endpoint}/", json.dumps(body), {"Content-Type": "application/json"})
        return self._answer(endpoint)

    def get(self, path: str) -> dict[str, object]:
        """The answer to a GET; raises `ServerFailed` if it is not 200."""
        self._connection.request("GET", path)
        return self._answer(path)

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def _answer(self, what: str) -> dict[str, object]:
        answer = self._connection.getresponse()
        text = answer.read().decode()
        if answer.status not in (200, 201):
            raise ServerFailed(f"{what} answered {answer.status} {text[:200]}")
        found = json.loads(text)
        return found if isinstance(found, dict) else {"list": found}


def ticks(per_second: float, seconds: float) -> Iterator[float]:
    """Moments on the clock of `time.monotonic`, each yielded when it has come.

    A probe's latency counts from its moment: one that is late because the one before took long is not forgiven.
    """
    began = time.monotonic()
    for number in range(max(1, round(per_second * seconds))):
        moment = began + number / per_second
        time.sleep(max(0.0, moment - time.monotonic()))
        yield moment
