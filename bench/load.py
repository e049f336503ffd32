"""A load, what is measured under it, and how that is summed up."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Load:
    """So many callers, each with one call under way at a time: a warm-up that does not count, then the measurement."""

    callers: int
    warm_up: float  # seconds
    seconds: float


@dataclass(frozen=True)
class Window:
    """The time that counts, on the clock of `time.perf_counter`."""

    opens: float
    closes: float

    @classmethod
    def of(cls, load: Load) -> Window:
        """The window of a load that begins now."""
        opens = time.perf_counter() + load.warm_up
        return cls(opens, opens + load.seconds)


@dataclass(frozen=True)
class Measured:
    """The latencies of the calls that ended within the window, in seconds, as one process saw them.

    `calls` counts those of the whole load, warm-up included; `cpu` is the share of one core that the process took.
    """

    latencies: array[float]
    seconds: float
    calls: int
    cpu: float


@dataclass(frozen=True)
class Sample:
    """One measurement in figures: calls (or events) a second, and latencies where single calls were timed.

    `cpu` is the share of one core that the measuring process took, `server_us` the server's time on a core for a
    call, in microseconds; `memory_kib` its memory for a connection; `idle` the share of all cores that had nothing to
    do; `conflicts` counts the statements that the database refused for another one's sake.
    """

    rate: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu: float | None = None
    server_us: float | None = None
    memory_kib: float | None = None
    idle: float | None = None
    conflicts: int = 0


def summed_up(parts: Sequence[Measured]) -> Sample:
    """One sample of what several processes measured at the same time."""
    latencies = sorted(latency for part in parts for latency in part.latencies)
    if not latencies:
        raise RuntimeError("nothing was answered within the time of the measurement")
    return Sample(
        rate=sum(len(part.latencies) / part.seconds for part in parts),
        p50_ms=percentile(latencies, 50) * 1000,
        p99_ms=percentile(latencies, 99) * 1000,
        cpu=sum(part.cpu for part in parts),
    )


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent of the values do not exceed; `ordered` rises and is not empty."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(rank, 1) - 1]


def median_of(samples: Sequence[Sample]) -> Sample:
    """The median of each figure on its own; conflicts are added up."""
    return Sample(
        rate=median(sample.rate for sample in samples),
        p50_ms=_median([sample.p50_ms for sample in samples]),
        p99_ms=_median([sample.p99_ms for sample in samples]),
        cpu=_median([sample.cpu for sample in samples]),
        server_us=_median([sample.server_us for sample in samples]),
        memory_kib=_median([sample.memory_kib for sample in samples]),
        idle=_median([sample.idle for sample in samples]),
        conflicts=sum(sample.conflicts for sample in samples),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
