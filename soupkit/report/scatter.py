"""A plot of a sweep: each hyper-parameter against the score. matplotlib is imported when it is drawn."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from soupkit.jsons import JsonView
from soupkit.whole import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_COLUMNS = 4


def scatter_plots(
    path: Path,
    rows: Sequence[JsonView],
    names: Sequence[str],
    *,
    value: str,
    error: str,
    ylabel: str,
    logarithmic: Collection[str] = (),
) -> None:
    """One panel per name: row[name] across, row[value] ± row[error] up; words and none stand side by side.

    logarithmic: names whose axis is so, unless one of their values is 0 or less. The file appears whole.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = min(len(names), MOST_COLUMNS)
    num_rows = -(-len(names) // num_columns)
    figure = Figure(figsize=(3.2 * num_columns, 2.8 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(names):
            axes.set_axis_off()
            continue
        _panel(axes, rows, names[number], value, error, logarithmic=names[number] in logarithmic)
        if number % num_columns == 0:
            axes.set_ylabel(ylabel)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _panel(
    axes: Axes, rows: Sequence[JsonView], name: str, value: str, error: str, *, logarithmic: bool
) -> None:
    xs = [row[name] for row in rows]
    numbers = all(isinstance(x, int | float) for x in xs)
    if not numbers:
        named = ["none" if x is None else str(x) for x in xs]
        words = sorted(set(named))
        xs = [words.index(word) for word in named]
        axes.set_xticks(range(len(words)), words)
        axes.set_xlim(-0.5, len(words) - 0.5)
    elif logarithmic and min(xs) > 0:
        axes.set_xscale("log")
    errors = [row.get(error) or 0 for row in rows]
    axes.errorbar(
        xs, [row[value] for row in rows], yerr=errors, fmt="o", markersize=4, linewidth=0.8, capsize=2
    )
    axes.set_xlabel(name)
    axes.grid(alpha=0.3)
