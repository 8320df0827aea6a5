"""Metrics of classification: of logits, and of the right classes.

Shapes: N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy.special import log_softmax, logsumexp

from soupkit.errors import TaskError
from soupkit.metrics import Direction
from soupkit.task.score import Metric, Predictions, Score, scores_of

NUM_BINS = 15


def num_ahead(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Classes ranked before the right one, int64[N]; ties go to the lower class as in argmax, NaN ranks
    first."""
    right = logits[np.arange(len(targets)), targets][:, None]
    later = np.arange(logits.shape[1])[None, :] >= targets[:, None]
    behind = (logits < right) | ((logits == right) & later)
    ahead: np.ndarray = (~behind).sum(1)
    return ahead


def margins(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Logit of the right class minus the best other, float32[N]; −inf where a logit is NaN."""
    rows = np.arange(len(targets))
    others = logits.astype(np.float32, copy=True)
    others[rows, targets] = -np.inf
    with np.errstate(invalid="ignore"):
        found = logits[rows, targets].astype(np.float32) - others.max(1)
    return np.where(np.isnan(found), np.float32(-np.inf), found)


def losses_of(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """−log p of the right class, in nats, float64[N]; NaN where a logit is no number."""
    return _losses(_log_p(logits), targets)


def errors_of(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """1 where the right class is not the first, else 0, float64[N]. NaN is merely wrong."""
    return (num_ahead(logits, targets) > 0).astype(np.float64)


def all_scores(predictions: Predictions) -> dict[str, Score]:
    """Every metric that applies: top5 only where there are more than five classes."""
    return scores_of(predictions, METRICS)


def ensemble(predictions: Sequence[Predictions], kind: Literal["logits", "softmax"]) -> Predictions:
    """Average logits, or probabilities (returned as their logarithms). Raises TaskError on different
    examples."""
    first = predictions[0]
    for other in predictions[1:]:
        if other.outputs.shape != first.outputs.shape or not np.array_equal(other.targets, first.targets):
            raise TaskError("an ensemble needs predictions of the same examples and classes")
    stacked = np.stack([p.outputs.astype(np.float64) for p in predictions])
    if kind == "softmax":
        mean = logsumexp(log_softmax(stacked, axis=2), axis=0) - math.log(len(predictions))
    else:
        mean = stacked.mean(0)
    return Predictions(mean.astype(np.float32), first.targets)


def direction_of(metric: str) -> Direction:
    """Which way is better. Raises TaskError for a metric that is not soupkit's."""
    if metric not in METRICS:
        raise TaskError(
            f"metric {metric!r} is not known, expected one of {', '.join(METRICS)}",
            hint="a metric of --score-command needs --direction max or min",
        )
    return METRICS[metric].direction


def _right(logits: np.ndarray, targets: np.ndarray, *, k: int) -> np.ndarray:
    """Whether the right class is among the first k. NaN is merely wrong."""
    if k > 1 and not _tells(logits, k):
        raise TaskError(f"top{k} says nothing about {logits.shape[1]} classes", hint="use top1")
    return (num_ahead(logits, targets) < k).astype(np.float64)[:, None]


def _tells(logits: np.ndarray, k: int) -> bool:
    return bool(logits.shape[1] > k)


def _log_p(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        log_p: np.ndarray = log_softmax(logits.astype(np.float64), axis=1)
    return log_p


def _losses(log_p: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.asarray(-log_p[np.arange(len(targets)), targets])


def _numbers(log_p: np.ndarray) -> np.ndarray:
    if np.isnan(log_p).any():
        raise TaskError(
            f"the model's outputs are not numbers for {int(np.isnan(log_p).any(1).sum())} examples"
        )
    return log_p


def _gaps(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Right less confidence, each example in the bin of its confidence: float64[N, bins]."""
    confidence = np.exp(_numbers(_log_p(logits)).max(1))
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    gaps = np.zeros((len(targets), NUM_BINS))
    gaps[np.arange(len(targets)), bins] = (num_ahead(logits, targets) < 1) - confidence
    return gaps


def _calibration_error(sums: np.ndarray, n: int) -> Any:
    """Σ_b n_b/N |accuracy_b − confidence_b|, out of Σ (right − confidence) of each bin."""
    return np.abs(sums).sum(-1) / n


METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", "max", partial(_right, k=1), margins=margins),
        Metric("top5", "max", partial(_right, k=5), margins=margins, applies=partial(_tells, k=5)),
        Metric("nll", "min", lambda logits, targets: _losses(_numbers(_log_p(logits)), targets)[:, None]),
        Metric("ece", "min", _gaps, _calibration_error),
    )
}
"""What soupkit computes of images: top-1 and top-5 accuracy, NLL in nats, and the expected calibration error
(Guo et al. 2017, arXiv:1706.04599, eq. 3) over 15 bins of equal width."""
