"""For those who run the server: is it alive, can it serve, and how is it doing?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from tornado.routing import URLSpec

from eventstore.errors import LogUnavailable
from handlers.http import JsonHandler
from handlers.services import Services

# Of each count that only rises: what it is called in the statistics, its metric's name, and what it tells.
_COUNTERS = (
    ("opened", "connections_opened", "Real-time connections opened"),
    ("delivered", "delivered", "Packets delivered to real-time connections"),
    ("delivered_bytes", "delivered_bytes", "Bytes of the packets delivered to real-time connections"),
)


class Health(JsonHandler):
    """`/healthz`: 200 as long as the process answers at all."""

    def get(self) -> None:
        """Tells that the process lives."""
        self.reply(200, {"status": "ok"})


class Readiness(JsonHandler):
    """`/readyz`: 200 while commands can be recorded and other processes' events arrive, else 503."""

    services: Services

    def get(self) -> None:
        """Tells whether requests can be served now."""
        if self.services.ready():
            self.reply(200, {"status": "ready"})
        else:
            self.reply(503, {"status": "not ready", "message": "The log cannot be reached now!"})


class Metrics(JsonHandler):
    """`/metrics`: counts of this process in Prometheus's text format."""

    services: Services

    async def get(self) -> None:
        """Tells the counts of this moment."""
        registry = CollectorRegistry(auto_describe=False)
        services = self.services
        reading = _Reading(services.connection_statistics(), services.ready(), await self._head())
        registry.register(reading if services.worker is None else _OfWorker(reading, services.worker))
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(generate_latest(registry))

    async def _head(self) -> int | None:
        """The last position of the log, None while nobody can tell: what else there is to tell is wanted then, too."""
        try:
            return await self.services.log_head()
        except LogUnavailable:
            return None


class _Reading(Collector):
    """The metrics of one moment."""

    def __init__(self, connections: Mapping[str, Any], ready: bool, head: int | None) -> None:
        self._connections = connections
        self._ready = ready
        self._head = head

    def collect(self) -> Iterator[Metric]:
        """All metrics, each with its samples."""
        counts = self._connections
        yield GaugeMetricFamily("minutebook_connections_open", "Real-time connections now.", counts["open"])
        for key, name, told in _COUNTERS:
            yield CounterMetricFamily(f"minutebook_{name}", f"{told} since the start.", counts[key])
        closed = CounterMetricFamily(
            "minutebook_connections_closed", "Real-time connections closed since the start.", labels=["reason"]
        )
        for reason, count in sorted(counts["closed"].items()):
            closed.add_metric([reason], count)
        yield closed
        yield GaugeMetricFamily("minutebook_log_ready", "1 while the log can be written and followed.", self._ready)
        if self._head is not None:
            yield GaugeMetricFamily("minutebook_log_head_position", "The last position of the log.", self._head)


class _OfWorker(Collector):
    """Metrics that say whose they are: one of several processes at one address."""

    def __init__(self, collector: Collector, worker: int) -> None:
        self._collector = collector
        self._label = {"worker": str(worker)}

    def collect(self) -> Iterator[Metric]:
        """All metrics, each sample with the label."""
        for metric in self._collector.collect():
            metric.samples = [sample._replace(labels=sample.labels | self._label) for sample in metric.samples]
            yield metric


def routes(services: Services) -> list[URLSpec]:
    """The operators' routes."""
    given = {"services": services}
    return [
        URLSpec(r"/healthz/?", Health),
        URLSpec(r"/readyz/?", Readiness, given),
        URLSpec(r"/metrics/?", Metrics, given),
    ]
