"""Plots of paths, planes and cyclical training, written as PNG files. No LaTeX, no window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from soupkit.jsons import Json
from soupkit.report.tables import split_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Vector = NDArray[np.float64]
COLORS = {"train": "tab:gray", "held_out": "tab:orange", "test": "tab:blue"}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def path_plot(
    path: Path,
    ts: Vector,
    panels: Mapping[str, Mapping[str, tuple[Vector, Vector]]],
    *,
    title: str,
    marks: Sequence[float] = (),
) -> None:
    """One panel per measure, {name: {split: (values, standard errors)}}, over t; a band is ± 1 standard
    error.

    marks: values of t with a vertical line, such as the corners of a chain.
    """
    figure = _figure(5.2 * len(panels), 3.8)
    for axes, (name, splits) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        for split, (values, errors) in splits.items():
            color = COLORS[split]
            axes.plot(ts, values, color=color, label=split_label(split))
            axes.fill_between(ts, values - errors, values + errors, color=color, alpha=0.2, linewidth=0)
        for mark in marks:
            axes.axvline(mark, color="black", linewidth=0.5, alpha=0.4)
        axes.set(xlabel="t", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def contour_levels(values: Vector, *, cap: float, num: int = 9) -> list[float]:
    """Levels from the lowest value to the cap (or the highest value, if lower), in equal ratios above the
    lowest.

    Empty when all values are equal.
    """
    low, high = float(values.min()), float(min(cap, values.max()))
    if high <= low:
        return []
    return [low, *(low + np.geomspace((high - low) / 64, high - low, num)).tolist()]


def plane_plot(
    path: Path,
    xs: Vector,
    ys: Vector,
    panels: Mapping[str, tuple[Vector, float]],
    *,
    points: Mapping[str, tuple[float, float]],
    projections: Mapping[str, tuple[float, float]],
    curve: Vector | None = None,
    title: str,
) -> None:
    """One contour map per measure, {name: (values float64[Y, X], cap)}, in the coordinates of the plane.

    points: checkpoints that lie in the plane; projections: those that do not; curve: float64[P, 2].
    """
    figure = _figure(6.2 * len(panels), 5.2)
    for axes, (name, (values, cap)) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        levels = contour_levels(values, cap=cap)
        if levels:
            filled = axes.contourf(xs, ys, np.minimum(values, levels[-1]), levels=levels, cmap="viridis_r")
            axes.contour(
                xs, ys, np.minimum(values, levels[-1]), levels=levels, colors="white", linewidths=0.4
            )
            figure.colorbar(filled, ax=axes, format="%.3g", ticks=levels)
        if curve is not None:
            axes.plot(curve[:, 0], curve[:, 1], color="black", linewidth=1.2)
        _marked(axes, points, "o", "white")
        _marked(axes, projections, "x", "tab:red")
        axes.set(title=name, xlabel="x", ylabel="y")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _marked(axes: Axes, points: Mapping[str, tuple[float, float]], marker: str, color: str) -> None:
    edge: Json = {"markeredgecolor": "black"} if marker == "o" else {}
    for name, (x, y) in points.items():
        axes.plot(x, y, marker, color=color, markersize=7, **edge)
        axes.annotate(name, (x, y), xytext=(5, 5), textcoords="offset points", fontsize="x-small")


def cycle_plot(
    path: Path,
    rates: tuple[Vector, Vector],
    traced: Mapping[str, tuple[Vector, Vector]],
    distances: tuple[Vector, Vector],
    *,
    kept: Sequence[float],
    title: str,
) -> None:
    """Learning rate, error and distance over epochs, one above the other; circles are the kept models.

    rates, distances: (epochs, values). traced: {split: (epochs, errors in percent)}. After Garipov et al.
    2018 (arXiv:1802.10026, §5).
    """
    figure = _figure(6.4, 6.6)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    top.plot(*rates, color="black")
    _circles(top, rates, kept)
    top.set(ylabel="learning rate")
    for split, line in traced.items():
        middle.plot(*line, ".-", color=COLORS[split], label=split_label(split))
        _circles(middle, line, kept)
    middle.set(ylabel="error, %")
    middle.legend(loc="best", fontsize="small")
    bottom.plot(*distances, ".-", color="black")
    _circles(bottom, distances, kept)
    bottom.set(ylabel="distance from the start", xlabel="epoch")
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _circles(axes: Axes, line: tuple[Vector, Vector], kept: Sequence[float]) -> None:
    xs, values = line
    for epoch in kept:
        axes.plot(
            epoch, np.interp(epoch, xs, values), "o", markersize=9, markerfacecolor="none", color="tab:red"
        )
