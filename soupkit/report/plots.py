"""Plots, written as PNG files. matplotlib is imported when the first is drawn, and never opens a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Point = tuple[float, float | None]
"""A value and its standard error."""


def dot_plot(
    path: Path,
    rows: Mapping[str, Mapping[str, Point]],
    *,
    title: str,
    xlabel: str,
    faint: Mapping[str, Sequence[float]],
) -> None:
    """One row per model, per split a dot with a bar of ± 1 standard error; `faint` adds single values behind
    a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.4 + 0.55 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    splits = list(next(iter(rows.values())))
    styles = dict(zip(splits, (("tab:gray", "s", -0.14), ("tab:blue", "o", 0.14)), strict=False))
    for position, (name, points) in enumerate(rows.items()):
        for value in faint.get(name, ()):
            axes.plot(value, position + 0.14, ".", color="tab:blue", alpha=0.3)
        for split, (value, error) in points.items():
            color, marker, shift = styles[split]
            label = split if position == 0 else None
            axes.errorbar(
                value, position + shift, xerr=error or 0, fmt=marker, color=color, capsize=3, label=label
            )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(title=title, xlabel=xlabel)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=150)


def line_plots(
    path: Path, xs: Sequence[float], curves: Mapping[str, Sequence[float]], *, xlabel: str
) -> None:
    """One panel per curve over the same xs, side by side: for quantities of different units."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(curves), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, ys) in zip(panels, curves.items(), strict=True):
        axes.plot(xs, ys, marker=".", color="tab:blue")
        axes.set(xlabel=xlabel, ylabel=name)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def compare_lines(
    path: Path,
    lines: Mapping[str, Sequence[tuple[float, float, float]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> None:
    """One line per name through (x, value, standard error), in one panel; a band is ± 1 standard error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (name, points), color in zip(
        lines.items(), ("tab:gray", "tab:orange", "tab:blue", "tab:green"), strict=False
    ):
        xs, values = [x for x, _, _ in points], [value for _, value, _ in points]
        axes.plot(xs, values, ".-", color=color, label=name)
        low, high = ([value + sign * error for _, value, error in points] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=150)
