"""Events → the terminal: data on stdout, everything else on stderr, no control codes where no terminal reads
them."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TextIO

from soupkit.cli.terminal import LONGEST, paragraph, write
from soupkit.errors import SoupkitError
from soupkit.events import (
    Advanced,
    Event,
    Finished,
    Measured,
    Scored,
    Started,
    Table,
    Text,
    Told,
    Warned,
    Wrote,
)
from soupkit.jsons import Json, JsonView
from soupkit.visible import in_one_line, visible

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_INTERVAL = 30.0  # seconds between two lines about the same work in a log


class Renderer:
    """A report for the command line; a context, since a live bar must be taken down again.

    quiet: warnings, errors and data only; tables: print tables on stdout (--json keeps stdout for one
    object). Thread-safe: the data plane may report from several threads.
    """

    def __init__(self, *, quiet: bool = False, tables: bool = True) -> None:
        self.quiet = quiet
        self.tables = tables
        self._bars = _LiveBars() if is_terminal(sys.stderr) else _SparseLines()
        self._lock = threading.RLock()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._bars.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Measured):  # for curves; the bars tell of it already
            return
        with self._lock:
            if isinstance(event, Table | Text):
                if self.tables:
                    self._bars.close()
                    text = (
                        event.text if isinstance(event, Text) else table_text(event, width=_width(sys.stdout))
                    )
                    write(sys.stdout, text, styled=isinstance(event, Table))
            elif isinstance(event, Started | Advanced | Finished):
                if not self.quiet:
                    self._show(event)
            elif isinstance(event, Warned) or not self.quiet:
                self._show(paragraph(line(event)))

    def _show(self, what: Started | Advanced | Finished | str) -> None:
        """A terminal that is gone takes no bars any more, and the work goes on."""
        try:
            self._bars.print(what) if isinstance(what, str) else self._bars.show(what)
        except OSError:
            self._bars = _SparseLines()


def line(event: Told | Warned | Scored | Wrote) -> str:
    """One line about one event."""
    match event:
        case Told(message):
            return message
        case Warned(message):
            return f"warning: {message}"
        case Wrote(path, num_bytes):
            return f"wrote {path} ({size(num_bytes)})"
        case Scored(name, metric, value, standard_error, num_examples, note):
            error = "" if standard_error is None else f" ± {standard_error:.4f}"
            count = "" if num_examples is None else f" (n = {num_examples})"
            return f"{name}: {metric} {value:.4f}{error}{count}{'  ' + note if note else ''}"


def error_text(error: SoupkitError) -> str:
    """The message, a blank line and the hint; legible without colour."""
    return f"error: {paragraph(error.message)}" + (f"\n\nhint: {paragraph(error.hint)}" if error.hint else "")


def json_text(result: JsonView) -> str:
    """What a job returned, as one strict JSON object: NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_strict(result), indent=2, ensure_ascii=False, allow_nan=False)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether control codes are welcome."""
    return (
        stream is not None
        and stream.isatty()
        and "NO_COLOR" not in os.environ
        and os.environ.get("TERM") not in ("dumb", "unknown")
    )


def size(num_bytes: float) -> str:
    """Bytes for people, in powers of 1000: "353.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def table_text(table: Table, *, width: int | None) -> str:
    """A table: folded to a terminal's `width` with its heading in bold, or plain and as wide as its cells
    (None)."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_header=any(table.columns), show_edge=False)
    for number, column in enumerate(table.columns):
        grid.add_column(
            Text(in_one_line(column)),
            justify=_alignment(table, number),
            overflow="fold",
            no_wrap=width is None,
        )
    for row in table.rows:
        grid.add_row(*(Text(in_one_line(cell_text(cell))[:LONGEST]) for cell in row))
    console = Console(
        file=sys.stdout,
        width=width or 100_000,
        force_terminal=width is not None,
        no_color=width is None,
        highlight=False,
        color_system="standard" if width else None,
    )
    with console.capture() as captured:
        console.print(grid)
    lines = (text.rstrip() for text in captured.get().splitlines())
    title, caption = visible(table.title), visible(table.caption)
    return "\n".join([*([title] if title else []), *lines, *([caption] if caption else [])])


def cell_text(cell: str | int | float | bool | None) -> str:
    """One cell: four significant digits, yes and no, nothing for None."""
    match cell:
        case None:
            return ""
        case bool():
            return "yes" if cell else "no"
        case float():
            return f"{cell:.4f}" if math.isfinite(cell) and 1e-3 <= abs(cell) < 1e4 else f"{cell:.4g}"
        case _:
            return str(cell)


def _alignment(table: Table, number: int) -> Literal["left", "right"]:
    cells = [row[number] for row in table.rows if row[number] is not None]
    return "right" if cells and all(isinstance(cell, int | float) for cell in cells) else "left"


def _width(stream: TextIO | None) -> int | None:
    """The terminal's width; None when no terminal reads along, since cut cells are lost data."""
    if not is_terminal(stream):
        return None
    from shutil import get_terminal_size

    return get_terminal_size().columns


def _strict(value: object) -> object:
    """JSON's own types: numpy scalars through .item(), paths as strings."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_strict(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _amount(done: float, total: float | None, unit: str) -> str:
    if unit in ("B", "bytes"):
        return size(done) + (f" / {size(total)}" if total else "")
    return f"{done:g}" + (f"/{total:g}" if total is not None else "") + (f" {unit}" if unit else "")


class _SparseLines:
    """Progress for a log: now and then a line about work that takes long."""

    def __init__(self) -> None:
        self._work: dict[str, tuple[Started, float]] = {}
        self._last: dict[str, float] = {}

    def show(self, event: Started | Advanced | Finished) -> None:
        if isinstance(event, Finished):
            self._work.pop(event.task, None)
        elif isinstance(event, Started):
            self._work[event.task] = (event, 0.0)
            self._last[event.task] = time.monotonic()
        elif event.task in self._work:
            started, done = self._work[event.task]
            self._work[event.task] = (started, done + event.by)
            if time.monotonic() - self._last[event.task] >= LINE_INTERVAL:
                self._last[event.task] = time.monotonic()
                note = f"  {event.note}" if event.note else ""
                self.print(f"{event.task}: {_amount(done + event.by, started.total, started.unit)}{note}")

    def print(self, text: str) -> None:
        write(sys.stderr, text)

    def close(self) -> None:
        """Nothing to take down."""


class _LiveBars:
    """Progress bars on a terminal, gone when the work is done."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: Json = {}

    def show(self, event: Started | Advanced | Finished) -> None:
        if isinstance(event, Started):
            self._finish(event.task)
            self._tasks[event.task] = self._live().add_task(
                in_one_line(event.task), total=event.total, unit=event.unit, amount="", note=""
            )
        elif event.task in self._tasks:
            if isinstance(event, Finished):
                self._finish(event.task)
            else:
                self._advance(event)

    def print(self, text: str) -> None:
        if self._progress is None:
            write(sys.stderr, text)
        else:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()

    def _advance(self, event: Advanced) -> None:
        number = self._tasks[event.task]
        progress = self._live()
        task = next(task for task in progress.tasks if task.id == number)
        amount = _amount(task.completed + event.by, task.total, task.fields["unit"])
        progress.update(number, advance=event.by, amount=amount, note=in_one_line(event.note))

    def _finish(self, name: str) -> None:
        if name in self._tasks:
            self._live().remove_task(self._tasks.pop(name))

    def _live(self) -> Progress:
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[amount]}", markup=False),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(file=sys.stderr),
                transient=True,
            )
            self._progress.start()
        return self._progress
