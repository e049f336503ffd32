"""What the benchmarks' command lines have in common: options, the stop by signal, progress, and the report."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypeVar

from bench.machine import Machine, installed
from bench.rounds import Results
from bench.worker import WorkerFailed, quieten


def parser(
    module: str, description: str, *, rounds: int, seconds: float | None = None, postgres: bool = True
) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have; `seconds`, if they have it, is that option's default."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=positive, default=rounds, help=f"how often each takes its turn ({rounds})")
    if seconds is not None:
        made.add_argument("--seconds", type=duration, default=seconds, help=f"length of each measurement ({seconds:g})")
        made.add_argument("--warm-up", type=duration, default=0.5, help="seconds before it that do not count (0.5)")
    if postgres:
        made.add_argument("--folder", type=folder, help="where to put the private Postgres (a temporary folder)")
    made.add_argument("--json", type=new_file, metavar="FILE", help="write all figures to this file too")
    return made


def positive(text: str) -> int:
    """A whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def duration(text: str) -> float:
    """A time in seconds above zero."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def folder(text: str) -> Path:
    """A folder that exists."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is no folder")
    return path


def new_file(text: str) -> Path:
    """A file in a folder that exists."""
    folder(str(Path(text).parent))
    return Path(text)


def run(main: Callable[[], None]) -> None:
    """Runs a benchmark: a signal stops it in an orderly way, and what goes wrong with a worker is told without ours."""
    quieten()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except WorkerFailed as error:
        sys.exit(str(error))


def progress(text: str) -> None:
    """Tells on standard error what is going on."""
    print(text, file=sys.stderr, flush=True)


class _Contestant(Protocol):
    @property
    def packages(self) -> Sequence[str]:
        """What must be installed for it to take part."""


_T = TypeVar("_T")
_C = TypeVar("_C", bound=_Contestant)


def taking_part(contestants: Iterable[_C]) -> list[_C]:
    """Those contestants whose packages are installed; says which are not, and what follows from that."""
    everybody = list(contestants)
    wanted = dict.fromkeys(package for contestant in everybody for package in contestant.packages)
    missing = [package for package in wanted if not installed(package)]
    if missing:
        names = ", ".join(missing)
        print(f"WARNING: not installed: {names}. Peers that need them are left out: pip install -e '.[bench]'")
    return [contestant for contestant in everybody if not set(missing).intersection(contestant.packages)]


def write_json(file: Path | None, arguments: argparse.Namespace, machine: Machine, results: Results) -> None:
    """Writes every sample, the medians and the ratios to `file`, if one was asked for."""
    if file is None:
        return
    cases = {case: _case(results, case) for case in results.cases()}
    settings = {name: str(value) for name, value in vars(arguments).items() if name not in ("json", "folder")}
    file.write_text(json.dumps({"machine": asdict(machine), "settings": settings, "cases": cases}, indent=2) + "\n")


def _case(results: Results, case: str) -> dict[str, object]:
    return {name: _contestant(results, case, name) for name in results.contestants(case)}


def _contestant(results: Results, case: str, name: str) -> dict[str, object]:
    ratio = results.ratio(case, name)
    return {
        "median": asdict(results.median(case, name)),
        "rounds": [asdict(sample) for sample in results.samples(case, name)],
        "ours_to_this": None if ratio is None else asdict(ratio),
    }


def interleaved(names: Sequence[_T], round_number: int) -> list[_T]:
    """The order of a round: each time another one begins, so that none always follows the same one."""
    start = round_number % len(names)
    return [*names[start:], *names[:start]]
