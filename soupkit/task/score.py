"""Metrics of predictions, with standard errors, and the paired comparison of two models on the same examples.

Shapes: N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import log_softmax, logsumexp

from soupkit import metrics
from soupkit.errors import TaskError
from soupkit.metrics import Direction

METRICS = ("top1", "top5", "nll", "ece")
"""What soupkit computes itself."""
COUNT_METRICS = {"top1": 1, "top5": 5}
NUM_BINS = 15
NUM_RESAMPLES = 10_000
_CHUNK_BYTES = 1 << 26
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Score:
    """One metric of one model on some examples.

    value: top1 and top5 as shares, NLL in nats, ECE as a share. num_right: for top1 and top5. margins: float32[N],
    logit of the right class minus the best other; None where not every example was evaluated. stopped: the evaluation
    ended early, after num_evaluated examples; value is then the most that could have been reached.
    """

    metric: str
    value: float
    standard_error: float | None
    num_examples: int | None
    num_right: int | None = None
    margins: np.ndarray | None = None
    num_evaluated: int | None = None
    stopped: bool = False


@dataclass(frozen=True)
class Predictions:
    """Logits float32[N, C] and the right classes int64[N]."""

    logits: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """How much a differs from b on the same examples: value(a) − value(b), with a 95 % interval and a p-value."""

    metric: str
    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    num_examples: int

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return dict(vars(self))


def direction_of(metric: str) -> Direction:
    """Which way is better. Raises TaskError for a metric that is not soupkit's."""
    if metric not in METRICS:
        raise TaskError(
            f"metric {metric!r} is not known, expected one of {', '.join(METRICS)}",
            hint="a metric of --score-command needs --direction max or min",
        )
    return metrics.direction_of(metric)


def better(a: float, b: float, direction: Direction) -> bool:
    """Whether a is strictly better than b. NaN is worse than any number and no better than itself."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(b) and not math.isnan(a)
    return a > b if direction == "max" else a < b


def num_ahead(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Classes ranked before the right one, int64[N]; ties go to the lower class as in argmax, NaN ranks first."""
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


def share_error(variance: float, n: int) -> float:
    """The standard error of a share: half the width of Wilson's score interval at z = 1, never 0.

    √(v/n + 1/(4n²)) / (1 + 1/n), v = p(1 − p) for examples that are right or wrong (Wilson 1927, J. Am. Stat.
    Assoc. 22, 209–212); for means over models or of paired differences, their variance over examples. It is Wald's
    √(v/n) up to O(1/n) where v is not small, and 1/(2(n + 1)) where every example says the same: n cannot say more.
    """
    return math.sqrt(variance / n + 1 / (4 * n * n)) / (1 + 1 / n)


def score_predictions(predictions: Predictions, metric: str) -> Score:
    """One metric. Standard errors: Wilson's for top1 and top5 (`share_error`), sd/√N for NLL, bootstrap for ECE.

    NLL is in nats. ECE (Guo et al. 2017, arXiv:1706.04599, eq. 3): Σ_b n_b/N |accuracy_b − confidence_b| over 15 bins
    of equal width. Raises TaskError for an unknown metric, no examples, top5 of fewer than six classes, or
    outputs that are not numbers (for top1 and top5 these are merely wrong).
    """
    direction_of(metric)
    columns = _columns(predictions, metric)
    n = len(columns)
    value = float(_value(columns.sum(0), n))
    if metric in COUNT_METRICS:
        num_right = int(columns.sum())
        error = share_error(value * (1 - value), n)
        found = margins(predictions.logits, predictions.targets)
        return Score(metric, value, error, n, num_right, found, n)
    if metric == "nll":
        error = float(columns.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    else:
        error = float(_bootstrap(columns, lambda sums: _value(sums, n), seed=0, num_resamples=1000).std(ddof=1))
    return Score(metric, value, error, n, num_evaluated=n)


def all_scores(predictions: Predictions) -> dict[str, Score]:
    """Every metric that applies: top5 only where there are more than five classes."""
    names = [m for m in METRICS if m != "top5" or predictions.logits.shape[1] > 5]
    return {metric: score_predictions(predictions, metric) for metric in names}


def ensemble(predictions: Sequence[Predictions], kind: Literal["logits", "softmax"]) -> Predictions:
    """Average logits, or probabilities (returned as their logarithms). Raises TaskError on different examples."""
    first = predictions[0]
    for other in predictions[1:]:
        if other.logits.shape != first.logits.shape or not np.array_equal(other.targets, first.targets):
            raise TaskError("an ensemble needs predictions of the same examples and classes")
    stacked = np.stack([p.logits.astype(np.float64) for p in predictions])
    if kind == "softmax":
        mean = logsumexp(log_softmax(stacked, axis=2), axis=0) - math.log(len(predictions))
    else:
        mean = stacked.mean(0)
    return Predictions(mean.astype(np.float32), first.targets)


def compare(a: Predictions, b: Predictions, metric: str, *, seed: int = 0) -> Comparison:
    """Paired comparison on the same examples: the 95 % percentile interval of 10,000 resamples of the examples.

    p-value: exact McNemar (the binomial test on the examples that only one of them has right) for top1 and top5, else
    twice the smaller bootstrap tail. Where two models that are not the same are right on the same examples, no resample
    differs: then the interval is ± z²/(n + z²), Wilson's 95 % bound on the share of examples that tell them apart, and
    the standard error `share_error`. Raises TaskError when the examples differ. Cost: O(10,000 N).
    """
    if not np.array_equal(a.targets, b.targets):
        raise TaskError("a comparison needs predictions of the same examples")
    direction_of(metric)
    columns_a, columns_b = _columns(a, metric), _columns(b, metric)
    n, width = columns_a.shape

    def difference(sums: np.ndarray) -> Any:
        return _value(sums[..., :width], n) - _value(sums[..., width:], n)

    columns = np.concatenate([columns_a, columns_b], 1)
    resampled = _bootstrap(columns, difference, seed=seed, num_resamples=NUM_RESAMPLES)
    low, high = np.quantile(resampled, [0.025, 0.975])
    p_value = _mcnemar(columns_a, columns_b) if metric in COUNT_METRICS else _tails(resampled)
    error, found = float(resampled.std(ddof=1)), float(difference(columns.sum(0)))
    if metric in COUNT_METRICS and np.array_equal(columns_a, columns_b) and not np.array_equal(a.logits, b.logits):
        bound = _Z95**2 / (n + _Z95**2)
        error, low, high = share_error(0.0, n), -bound, bound
    return Comparison(metric, found, error, float(low), float(high), p_value, n)


def scores_to_json(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """The layout of metrics in manifests: {metric: {value, standard_error, num_examples}}."""
    return {
        metric: {
            "value": _finite(score.value),
            "standard_error": _finite(score.standard_error),
            "num_examples": score.num_examples,
        }
        for metric, score in scores.items()
    }


def _columns(predictions: Predictions, metric: str) -> np.ndarray:
    """Per-example terms float64[N, K] of which `_value` of the sums is the metric."""
    logits, targets = predictions.logits, predictions.targets
    if len(targets) == 0:
        raise TaskError("there are no examples to score")
    if metric in COUNT_METRICS:
        if metric == "top5" and logits.shape[1] < 6:
            raise TaskError(f"top5 says nothing about {logits.shape[1]} classes", hint="use top1")
        return (num_ahead(logits, targets) < COUNT_METRICS[metric]).astype(np.float64)[:, None]
    with np.errstate(invalid="ignore"):
        log_p = log_softmax(logits.astype(np.float64), axis=1)
    if np.isnan(log_p).any():
        raise TaskError(f"the model's outputs are not numbers for {int(np.isnan(log_p).any(1).sum())} examples")
    if metric == "nll":
        return np.asarray(-log_p[np.arange(len(targets)), targets][:, None])
    confidence = np.exp(log_p.max(1))
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    gaps = np.zeros((len(targets), NUM_BINS))
    gaps[np.arange(len(targets)), bins] = (num_ahead(logits, targets) < 1) - confidence
    return gaps


def _value(sums: np.ndarray, n: int) -> Any:
    """A mean for one column; Σ_b |Σ (right − confidence)| / N for the bins of ECE."""
    return sums[..., 0] / n if sums.shape[-1] == 1 else np.abs(sums).sum(-1) / n


def _bootstrap(
    columns: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int, num_resamples: int
) -> np.ndarray:
    """statistic(column sums) of resamples of the rows, with replacement: float64[num_resamples]."""
    groups, sizes = np.unique(columns, axis=0, return_counts=True)
    random, n = np.random.default_rng(seed), len(columns)
    chunk = max(1, _CHUNK_BYTES // (8 * max(n, len(groups))))
    found = []
    for start in range(0, num_resamples, chunk):
        rows = min(chunk, num_resamples - start)
        found.append(statistic(_counts(random, sizes, n, rows) @ groups))
    return np.concatenate(found)


def _counts(random: np.random.Generator, sizes: np.ndarray, n: int, rows: int) -> np.ndarray:
    """How often each group of equal rows is drawn: multinomial, by whichever way is cheaper."""
    if len(sizes) * 8 < n:
        return np.asarray(random.multinomial(n, sizes / n, size=rows), np.float64)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    drawn = owner[random.integers(0, n, (rows, n))] + len(sizes) * np.arange(rows)[:, None]
    counts: np.ndarray = np.bincount(drawn.ravel(), minlength=rows * len(sizes)).astype(np.float64)
    return counts.reshape(rows, -1)


def _mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """McNemar 1947, exact: given that one of the two is right, either is as likely as the other."""
    from scipy.stats import binomtest  # half a second that a search can do without

    only_a, only_b = int((right_a > right_b).sum()), int((right_b > right_a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _tails(resampled: np.ndarray) -> float:
    below, above = (resampled <= 0).sum(), (resampled >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(resampled) + 1)))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
