"""What the figures were measured on, told with them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass

from bench.private_postgres import PrivatePostgres

# Distributions of the peers, all of which are modules of the same name, and the driver that ours shares with some.
PACKAGES = ("psycopg", "asyncpg", "eventsourcing", "fastapi", "starlette", "aiohttp", "uvicorn", "uvloop", "httptools")
# A load average above which the machine is not ours alone.
_BUSY = 0.4


@dataclass(frozen=True)
class Machine:
    """The machine, its Postgres, if there is one in the run, and the versions of what takes part."""

    cores: int
    load_average: float  # before the first measurement
    python: str
    postgres: Mapping[str, str]
    sync_ms: float | None
    packages: Mapping[str, str]

    @classmethod
    def of(cls, postgres: PrivatePostgres | None, packages: Mapping[str, str] | None = None) -> Machine:
        """This machine, with the Postgres of this run and other packages than Python's installed ones, if those run."""
        return cls(
            cores=os.cpu_count() or 1,
            load_average=os.getloadavg()[0],
            python=platform.python_version(),
            postgres=postgres.describe() if postgres else {},
            sync_ms=postgres.sync_ms if postgres else None,
            packages=packages or python_packages(),
        )

    def headline(self) -> str:
        """The machine in a few lines."""
        lines = [
            f"{self.cores} cores, Python {self.python}{self._postgres()}",
            ", ".join(f"{name} {version}" for name, version in self.packages.items()),
        ]
        if self.load_average > _BUSY:
            busy = f"others use this machine too (load average {self.load_average:.1f})"
            lines.append(f"WARNING: {busy}; ratios hold better than absolute figures")
        return "\n".join(lines)

    def _postgres(self) -> str:
        if self.sync_ms is None:
            return ""
        version, sync = self.postgres["server_version"], f"8 KiB are on its disk within {self.sync_ms:.2f} ms"
        return f", PostgreSQL {version}, fsync and synchronous_commit on; {sync}"


def python_packages() -> dict[str, str]:
    """The versions of those packages that are installed."""
    return {name: importlib.metadata.version(name) for name in PACKAGES if installed(name)}


def installed(package: str) -> bool:
    """Whether a package is there, found without importing it."""
    return importlib.util.find_spec(package) is not None
