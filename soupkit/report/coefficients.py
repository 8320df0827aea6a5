"""Plots of a learned soup: its coefficients, and how they were learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

MAX_LABELS = 40


def heat_map(
    path: Path, values: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], title: str
) -> None:
    """Coefficients [ingredients, blocks] as colours, white at zero; labels where there are few enough to
    read."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = 1.6 + 0.2 * min(len(rows), MAX_LABELS), 4 + 0.15 * min(len(columns), MAX_LABELS)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    largest = float(np.abs(values).max()) or 1.0
    image = axes.imshow(
        values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest"
    )
    figure.colorbar(image, ax=axes, label="coefficient")
    if len(rows) <= MAX_LABELS:
        axes.set_yticks(range(len(rows)), [row[-32:] for row in rows], fontsize=6)
    if len(columns) <= MAX_LABELS:
        axes.set_xticks(range(len(columns)), [column[-24:] for column in columns], fontsize=6, rotation=90)
    axes.set(title=title, xlabel="block", ylabel="ingredient")
    figure.savefig(path, dpi=150)


def learning_curve(
    path: Path, losses: Mapping[str, Sequence[float]], *, scores: Sequence[float], metric: str, title: str
) -> None:
    """Mean loss of every epoch, one line per run; and, on an axis of its own, the mean score over folds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, values in losses.items():
        axes.plot(np.arange(len(values)) + 0.5, values, "-o", markersize=3, label=f"loss, {name}")
    axes.set(title=title, xlabel="epoch", ylabel="loss")
    axes.grid(alpha=0.3)
    if scores:
        other = axes.twinx()
        other.plot(
            range(len(scores)), scores, "s--", color="tab:gray", markersize=3, label=f"{metric}, folds"
        )
        other.set_ylabel(f"{metric} on examples not learned")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=150)
