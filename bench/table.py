"""Plain aligned tables."""

from __future__ import annotations

from collections.abc import Sequence

from bench.rounds import Ratio


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their header: texts to the left, what begins with a digit in every row to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    right = [all(not row[i] or row[i][0].isdigit() for row in rows) for i in range(len(header))]
    return "\n".join(_line(line, widths, right) for line in [lines[0], ["-" * width for width in widths], *lines[1:]])


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = (
        cell.rjust(width) if flush_right else cell.ljust(width)
        for cell, width, flush_right in zip(cells, widths, right, strict=True)
    )
    return "  ".join(parts).rstrip()


def rate(value: float) -> str:
    """A rate as a whole number with its thousands set apart."""
    return f"{value:,.0f}"


def milliseconds(value: float | None) -> str:
    """A latency with two decimals; empty when there is none."""
    return "" if value is None else f"{value:.2f}"


def ratio(value: Ratio | None) -> str:
    """A ratio's median and extremes; empty when there is none."""
    return "" if value is None else f"{value.median:.2f} ({value.low:.2f}-{value.high:.2f})"
