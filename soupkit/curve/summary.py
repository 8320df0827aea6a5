"""The numbers of a path: what is measured at every point, and its extremes and means.

Shape suffixes: P points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soupkit.curve.barrier import excess
from soupkit.jsons import Json, JsonView

Vector = NDArray[np.float64]
PREFIXES = {"train": "tr", "held_out": "ho", "test": "te"}
MEASURES = ("loss", "nll", "err")


@dataclass(frozen=True)
class Measured:
    """One split along a path, float64[P] each; loss = NLL + L2 penalty, err and its error in percent."""

    loss: Vector
    nll: Vector
    err: Vector
    nll_error: Vector
    err_error: Vector
    num_examples: int

    def error_of(self, measure: str) -> Vector:
        """The standard errors of a measure; the penalty has none."""
        return self.err_error if measure == "err" else self.nll_error


@dataclass(frozen=True)
class Scored:
    """A scored path: t of its points, the distance of each to the one before, and what was measured on every
    split."""

    ts: Vector
    steps: Vector
    splits: Mapping[str, Measured]

    @property
    def length(self) -> float:
        """The length of the path, ΣΔ, by its points."""
        return float(self.steps.sum())


def measured(points: Sequence[JsonView], split: str, penalties: Vector) -> Measured:
    """One split of scored points; penalties: ½ · weight_decay · ‖w‖² at each point."""

    def column(metric: str, part: str) -> Vector:
        values = [point[split][metric][part] for point in points]
        return np.array([np.nan if value is None else value for value in values], np.float64)

    nll, num = column("nll", "value"), points[0][split]["nll"]["num_examples"]
    errors = column("nll", "standard_error"), 100 * column("top1", "standard_error")
    return Measured(nll + penalties, nll, 100 * (1 - column("top1", "value")), *errors, int(num))


def summary(values: Vector, steps: Vector) -> dict[str, float]:
    """min, max, avg (over points) and int (over the length of the path, by trapezoids) of one measure."""
    length = float(steps.sum())
    pieces = 0.5 * (values[:-1] + values[1:]) * steps[1:]
    mean = float(values.mean())
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "avg": mean,
        "int": float(pieces.sum() / length) if length > 0 else mean,
    }


def fields(path: Scored) -> Json:
    """The arrays and numbers of curve.npz: the published fields, and held-out, standard errors and the
    length.

    ts, dl; for X in tr, ho, te: X_loss, X_nll, X_err, X_acc, X_nll_se, X_err_se float64[P], X_n, and
    X_loss_min, _max, _avg, _int, as of the other measures. Errors and accuracies are in percent.
    """
    found: Json = {"ts": path.ts, "dl": path.steps, "length": path.length}
    for split, each in path.splits.items():
        prefix = PREFIXES[split]
        for measure in MEASURES:
            values: Vector = getattr(each, measure)
            found[f"{prefix}_{measure}"] = values
            found |= {f"{prefix}_{measure}_{name}": v for name, v in summary(values, path.steps).items()}
        found |= {f"{prefix}_acc": 100 - each.err, f"{prefix}_n": each.num_examples}
        found |= {f"{prefix}_nll_se": each.nll_error, f"{prefix}_err_se": each.err_error}
    return found


def metrics(path: Scored) -> Json:
    """The same as a manifest holds metrics: {split: {"nll_max": {value, standard_error, num_examples}, …}}.

    Extremes carry the standard error of the point that has them; means over the path carry none, since its
    points are measured on the same examples.
    """
    found: Json = {}
    for split, each in path.splits.items():
        found[split] = {}
        for measure in MEASURES:
            values, errors = getattr(each, measure), each.error_of(measure)
            names = summary(values, path.steps) | {"barrier": float(excess(values, path.ts).max())}
            points = {
                "start": 0,
                "end": len(values) - 1,
                "min": int(values.argmin()),
                "max": int(values.argmax()),
            }
            for name in ("start", "end", *names):
                value = float(values[points[name]]) if name in points else names[name]
                error = float(errors[points[name]]) if name in points else None
                entry = {"value": value, "standard_error": error, "num_examples": each.num_examples}
                found[split][f"{measure}_{name}"] = entry
    return found
