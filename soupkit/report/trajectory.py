"""Plots of averages along a training: their coefficients over its steps, and what each window is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Line = tuple[Sequence[float], Sequence[float]]
"""Steps, and the coefficients of the checkpoints at them."""
MOST_COLUMNS = 3


def coefficient_plot(path: Path, windows: Mapping[str, Mapping[str, Line]]) -> None:
    """A panel per window, and in it a line per shape."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(windows), MOST_COLUMNS)
    rows = -(-len(windows) // columns)
    figure = Figure(figsize=(max(6.4, 4.2 * columns), 1 + 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes, (window, shapes) in zip(panels, windows.items(), strict=False):
        for shape, (steps, values) in shapes.items():
            axes.plot(steps, values, ".-", label=shape)
        axes.axhline(0, color="black", linewidth=0.5)
        axes.set(title=window, xlabel="step", ylabel="coefficient")
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="x-small")
    for axes in panels[len(windows) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=150)


def window_plot(
    path: Path, scores: Mapping[str, Sequence[tuple[str, float, float | None]]], *, last: float, ylabel: str
) -> None:
    """Per shape the score (± 1 standard error) of each window, and that of the last checkpoint as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    windows = list(dict.fromkeys(window for points in scores.values() for window, _, _ in points))
    figure = Figure(figsize=(max(6.4, 2 + 1.1 * len(windows)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhline(last, color="black", linestyle="--", linewidth=1, label="last checkpoint")
    for number, (shape, points) in enumerate(scores.items()):
        shift = 0.08 * (number - (len(scores) - 1) / 2)
        places = [windows.index(window) + shift for window, _, _ in points]
        errors = [error or 0.0 for _, _, error in points]
        axes.errorbar(places, [value for _, value, _ in points], errors, fmt="o-", capsize=3, label=shape)
    axes.set_xticks(range(len(windows)), windows, fontsize=7)
    axes.set(title="merge trajectory: windows", xlabel="window", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=150)
