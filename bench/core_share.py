"""A limit to what a process may take of a core, by control groups, and what the machine had left meanwhile (Linux)."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Within each period a process runs for its share and then waits. Latencies grow by so much, so it is short; the system
# takes no share of a period that is less than a millisecond.
_PERIOD_US = 20_000
LEAST = 0.05
_MEMBERS = "cgroup.procs"
_numbers = itertools.count()


class ShareUnavailable(Exception):
    """The system limits no process here; the message says why."""


@contextlib.contextmanager
def limited(pid: int, share: float) -> Iterator[None]:
    """Gives a process, with all its threads, no more than such a share of one core until the context ends.

    Raises `ShareUnavailable`.
    """
    with _group(share) as group:
        (group / _MEMBERS).write_text(str(pid))
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                (group.parent / _MEMBERS).write_text(str(pid))


def check_available(share: float) -> None:
    """Raises `ShareUnavailable` if no process can be limited so here."""
    with _group(share):
        pass


@contextlib.contextmanager
def _group(share: float) -> Iterator[Path]:
    root, is_unified = _hierarchy()
    group = root / f"minutebook-bench-{os.getpid()}-{next(_numbers)}"
    with contextlib.ExitStack() as stack:
        try:
            group.mkdir()
            stack.callback(group.rmdir)
            _limit(group, is_unified, round(share * _PERIOD_US))
        except OSError as error:
            raise ShareUnavailable(f"no control group can be made in {root}: {error.strerror} (root may)") from error
        yield group


def _limit(group: Path, is_unified: bool, quota_us: int) -> None:
    if is_unified:
        (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))


def _hierarchy() -> tuple[Path, bool]:
    """Where groups that limit cores are made, and whether it is the unified hierarchy (cgroups(7), version 2)."""
    mounts = Path("/proc/self/mounts")
    lines = mounts.read_text().splitlines() if mounts.exists() else []
    for _, place, kind, options, *_ in map(str.split, lines):
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(place), False
        if kind == "cgroup2" and "cpu" in (Path(place) / "cgroup.subtree_control").read_text().split():
            return Path(place), True
    raise ShareUnavailable("the system has no control groups that limit what is taken of cores")


@dataclass(frozen=True)
class CoreTimes:
    """What all cores have done so far, in the system's ticks: how much of it was nothing."""

    idle: int
    total: int

    @classmethod
    def now(cls) -> CoreTimes:
        """As proc(5) tells it. What other guests of the host took counts as busy."""
        user, nice, system, idle, waiting, *rest = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
        return cls(idle + waiting, user + nice + system + idle + waiting + sum(rest))

    def idle_until(self, later: CoreTimes) -> float:
        """The share of all cores that had nothing to do in between, from 0 to 1."""
        return (later.idle - self.idle) / max(1, later.total - self.total)
