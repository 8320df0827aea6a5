"""What a job reports while it runs; the command line renders it, a library caller may ignore it.

A job takes `report: Report` and calls it with these frozen records. No job prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Started:
    """Long work named `task` begins; `total` counts `unit`s, None when unknown."""

    task: str
    total: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Advanced:
    """`task` moved on by `by` units; `note` is shown beside the bar."""

    task: str
    by: float = 1
    note: str = ""


@dataclass(frozen=True)
class Finished:
    """`task` is over."""

    task: str


@dataclass(frozen=True)
class Told:
    """A line for the reader: a decision, a finding, what comes next."""

    message: str


@dataclass(frozen=True)
class Warned:
    """Something the reader should not miss, though work goes on."""

    message: str


@dataclass(frozen=True)
class Scored:
    """One model, soup or trial was scored."""

    name: str
    metric: str
    value: float
    standard_error: float | None
    num_examples: int | None
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """A number that changes while work goes on, at one of its steps: a point of a curve."""

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class Wrote:
    """An output now exists, whole."""

    path: Path
    num_bytes: int


@dataclass(frozen=True)
class Table:
    """A result to look at: it goes to stdout."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Text:
    """A result as it is, to be put somewhere: it goes to stdout."""

    text: str


Event = Started | Advanced | Finished | Told | Warned | Scored | Measured | Wrote | Table | Text
Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """A report for callers who want none."""
