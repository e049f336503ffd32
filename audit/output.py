"""How commands show what they found: tables and bars for people on a terminal, JSON lines with `--json` or in a pipe.

Results go to standard output, one JSON object a line where they are not for people; notes and progress go to standard
error, the latter only on a terminal. What the log holds was written by anybody: on a terminal its control
characters are shown, not obeyed.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# DEL and the control characters beyond ASCII, in UTF-8.
_OBEYED = re.compile(rb"\x7f|\xc2[\x80-\x9f]")
# Rows of a table are shown so many at a time: it is not known how many are still to come.
_PAGE = 500

Record = Mapping[str, Any]
# Called with what is done by now, and of how much.
Tell = Callable[[int, int], None]


class Output:
    """Where the results of one command go. `as_json=None` means: unless standard output is a terminal."""

    def __init__(
        self, *, as_json: bool | None = None, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self._stdout = stdout or sys.stdout
        self._people = Console(file=self._stdout, highlight=False, soft_wrap=False)
        self._notes = Console(file=stderr or sys.stderr, highlight=False, soft_wrap=True)
        self.is_json = not self._people.is_terminal if as_json is None else as_json

    def rows(self, rows: Iterable[Record], columns: Iterable[str] | None = None, *, title: str | None = None) -> int:
        """Shows records that have the same keys, as a table for people; returns how many there were.

        `columns` are the keys that a table shows, by default those of the first record. JSON has all keys.
        """
        count = 0
        if self.is_json:
            for count, row in enumerate(rows, start=1):  # noqa: B007 - the last one is how many there were
                self.line(row)
            return count
        names = None if columns is None else list(columns)
        pages = iter(rows)
        while page := list(itertools.islice(pages, _PAGE)):
            names = names or list(page[0])
            self._people.print(_table(names, page, title if not count else None))
            count += len(page)
        return count

    def record(self, record: Record, *, title: str | None = None) -> None:
        """Shows one record, for people as a list of its keys and values."""
        if self.is_json:
            self.line(record)
            return
        table = Table(box=None, show_header=False, title=title, title_justify="left", pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in record.items():
            table.add_row(_label(name), cell(value))
        self._people.print(table)

    def line(self, record: Record) -> None:
        """Writes a record as a line of JSON, for people too."""
        self.lines(msgspec.json.encode(record) + b"\n")

    def lines(self, content: bytes) -> None:
        """Writes lines of JSON; on a terminal, with an escape for what it would obey and JSON allows as it is."""
        self.write(_OBEYED.sub(_escape, content) if self._people.is_terminal else content)

    def text(self, text: str | Text) -> None:
        """Shows a line to people; JSON leaves it out."""
        if not self.is_json:
            self._people.print(text if isinstance(text, Text) else Text(text), soft_wrap=True)

    def write(self, content: bytes) -> None:
        """Writes to standard output as it is, at once."""
        self._stdout.flush()
        self._stdout.buffer.write(content)
        self._stdout.buffer.flush()

    def note(self, text: str, style: str = "") -> None:
        """Says something on standard error that is no result."""
        self._notes.print(Text(visible(text), style))

    @contextmanager
    def progress(self, label: str, unit: str = "events") -> Iterator[Tell]:
        """A bar with the rate and the time that is left, on a terminal; it may be told from several threads."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(unit),
            TimeRemainingColumn(),
            console=self._notes,
            transient=True,
            disable=not self._notes.is_terminal,
        )
        with bar:
            task = bar.add_task(label, total=None)

            def tell(done: int, total: int) -> None:
                bar.update(task, completed=done, total=max(total, done))

            yield tell


class _Rate(ProgressColumn):
    """How many a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else "", style="progress.data.speed")


def cell(value: object) -> Text:
    """A value as it stands in a table; what a terminal would obey is shown by its escape."""
    match value:
        case None:
            return Text("-", style="dim")
        case bool():
            return Text("yes" if value else "no")
        case str():
            return Text(visible(value))
        case int():
            return Text(str(value))
        case _:
            return Text(visible(msgspec.json.encode(value).decode()))


def visible(text: str) -> str:
    """The text with everything that cannot be printed as its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _escape(found: re.Match[bytes]) -> bytes:
    return b"\\u00%02x" % found[0][-1]


def _label(name: str) -> str:
    return name.replace("_", " ")


def _table(names: list[str], rows: list[Record], title: str | None) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in names:
        numbers = all(isinstance(row.get(name), int | None) for row in rows)
        table.add_column(_label(name), overflow="fold", justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(cell(row.get(name)) for name in names))
    return table
