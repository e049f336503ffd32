"""Closed loops: callers that each wait for an answer before they call again, as tasks or as threads.

A call counts when it ends within the window, so the rate is right also where calls take long: as many are cut off
at its end as were under way at its beginning.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from bench.load import Load, Measured, Window

_clock = time.perf_counter


async def run_tasks(call: Callable[[], Awaitable[object]], load: Load) -> Measured:
    """Measures a coroutine function under `load`, with a task for each caller."""
    latencies = array("d")
    window, cpu_before = Window.of(load), time.process_time()
    calls = await asyncio.gather(*(_call_by_turns(call, window, latencies) for _ in range(load.callers)))
    return _measured(latencies, sum(calls), load, cpu_before)


async def _call_by_turns(call: Callable[[], Awaitable[object]], window: Window, latencies: array[float]) -> int:
    calls, ended = 0, _clock()
    while ended < window.closes:
        began = _clock()
        await call()
        ended = _clock()
        calls += 1
        if window.opens <= ended < window.closes:
            latencies.append(ended - began)
    return calls


def run_threads(call: Callable[[], object], load: Load) -> Measured:
    """Measures a blocking function under `load`, with a thread for each caller."""
    latencies = array("d")  # its `append` is atomic
    window, cpu_before = Window.of(load), time.process_time()

    def call_by_turns(_: int) -> int:
        calls, ended = 0, _clock()
        while ended < window.closes:
            began = _clock()
            call()
            ended = _clock()
            calls += 1
            if window.opens <= ended < window.closes:
                latencies.append(ended - began)
        return calls

    with ThreadPoolExecutor(load.callers) as threads:
        calls = sum(threads.map(call_by_turns, range(load.callers)))
    return _measured(latencies, calls, load, cpu_before)


def _measured(latencies: array[float], calls: int, load: Load, cpu_before: float) -> Measured:
    share = (time.process_time() - cpu_before) / (load.warm_up + load.seconds)
    return Measured(latencies, load.seconds, calls, share)
