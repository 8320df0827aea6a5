"""Metrics of what a model says, with standard errors, and the paired comparison of two models.

Shapes: N examples, K columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from soupkit.errors import TaskError
from soupkit.jsons import Json
from soupkit.metrics import Direction

NUM_RESAMPLES = 10_000
_CHUNK_BYTES = 1 << 26
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Score:
    """One metric of one model on some examples.

    value: shares as shares, NLL in nats. num_right: for metrics that count. margins: float32[N], by how much
    each example is right; None where not every example was evaluated. stopped: the evaluation ended early,
    after num_evaluated examples; value is then the most that could have been reached.
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
    """What a model says of examples, float32[N, …], and what is right, [N, …]."""

    outputs: np.ndarray
    targets: np.ndarray


Terms = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(outputs, targets) → an array over the examples."""


def mean(sums: np.ndarray, n: int) -> Any:
    """The mean of a single column, out of its sum."""
    return sums[..., 0] / n


@dataclass(frozen=True)
class Metric:
    """A number of all outputs and targets together: `value` of the sums of per-example `terms`.

    terms: → float64[N, K], raises TaskError for outputs that it can say nothing of. value: (sums [..., K], N)
    → [...]; so means are metrics, and F1 and calibration errors too. margins: → float32[N], how right each
    example is; given for a metric that counts: its one term is 1 or 0, and a trial may end early. applies:
    whether it says anything.
    """

    name: str
    direction: Direction
    terms: Terms
    value: Callable[[np.ndarray, int], Any] = mean
    margins: Terms | None = None
    applies: Callable[[np.ndarray], bool] = lambda _outputs: True

    @property
    def counts(self) -> bool:
        """Whether an example is right or wrong, so that early stop is exact."""
        return self.margins is not None

    def columns(self, predictions: Predictions) -> np.ndarray:
        """The terms of some examples. Raises TaskError when there are none."""
        if len(predictions.targets) == 0:
            raise TaskError("there are no examples to score")
        return self.terms(predictions.outputs, predictions.targets)

    def of(self, outputs: np.ndarray, targets: np.ndarray) -> Score:
        """The score. Standard errors: Wilson's of what counts (`share_error`), sd/√N of means, else
        bootstrap.

        Raises TaskError for no examples and for outputs that the terms refuse.
        """
        columns = self.columns(Predictions(outputs, targets))
        n = len(columns)
        value = float(self.value(columns.sum(0), n))
        if self.margins is not None:
            error, num_right = share_error(value * (1 - value), n), int(columns.sum())
            return Score(self.name, value, error, n, num_right, self.margins(outputs, targets), n)
        if columns.shape[1] == 1:
            error = float(columns.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
        else:
            found = bootstrap(columns, lambda sums: self.value(sums, n), seed=0, num_resamples=1000)
            error = float(found.std(ddof=1))
        return Score(self.name, value, error, n, num_evaluated=n)


def scores_of(predictions: Predictions, metrics: Mapping[str, Metric]) -> dict[str, Score]:
    """Every one of the metrics that applies."""
    outputs, targets = predictions.outputs, predictions.targets
    return {name: metric.of(outputs, targets) for name, metric in metrics.items() if metric.applies(outputs)}


@dataclass(frozen=True)
class Comparison:
    """How much a differs from b on the same examples: value(a) − value(b), with a 95 % interval and a
    p-value."""

    metric: str
    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    num_examples: int

    def to_json(self) -> Json:
        """All of it, JSON-able."""
        return dict(vars(self))


def better(a: float, b: float, direction: Direction) -> bool:
    """Whether a is strictly better than b. NaN is worse than any number and no better than itself."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(b) and not math.isnan(a)
    return a > b if direction == "max" else a < b


def share_error(variance: float, n: int) -> float:
    """The standard error of a share: half the width of Wilson's score interval at z = 1, never 0.

    √(v/n + 1/(4n²)) / (1 + 1/n), v = p(1 − p) for examples that are right or wrong (Wilson 1927, J. Am. Stat.
    Assoc. 22, 209–212); for means over models or of paired differences, their variance over examples. It is
    Wald's √(v/n) up to O(1/n) where v is not small, and 1/(2(n + 1)) where every example says the same: n
    cannot say more.
    """
    return math.sqrt(variance / n + 1 / (4 * n * n)) / (1 + 1 / n)


def compare(a: Predictions, b: Predictions, metric: Metric, *, seed: int = 0) -> Comparison:
    """Paired comparison on the same examples: the 95 % percentile interval of 10,000 resamples of the
    examples.

    p-value: exact McNemar (the binomial test on the examples that only one of them has right) for metrics
    that count, else twice the smaller bootstrap tail. Where two models that are not the same are right on the
    same examples, no resample differs: then the interval is ± z²/(n + z²), Wilson's 95 % bound on the share
    of examples that tell them apart, and the standard error `share_error`. Raises TaskError when the examples
    differ. Cost: O(10,000 N).
    """
    if not np.array_equal(a.targets, b.targets):
        raise TaskError("a comparison needs predictions of the same examples")
    columns_a, columns_b = metric.columns(a), metric.columns(b)
    n, width = columns_a.shape

    def difference(sums: np.ndarray) -> Any:
        return metric.value(sums[..., :width], n) - metric.value(sums[..., width:], n)

    columns = np.concatenate([columns_a, columns_b], 1)
    resampled = bootstrap(columns, difference, seed=seed, num_resamples=NUM_RESAMPLES)
    low, high = np.quantile(resampled, [0.025, 0.975])
    p_value = _mcnemar(columns_a, columns_b) if metric.counts else _tails(resampled)
    error, found = float(resampled.std(ddof=1)), float(difference(columns.sum(0)))
    if metric.counts and np.array_equal(columns_a, columns_b) and not np.array_equal(a.outputs, b.outputs):
        bound = _Z95**2 / (n + _Z95**2)
        error, low, high = share_error(0.0, n), -bound, bound
    return Comparison(metric.name, found, error, float(low), float(high), p_value, n)


def scores_to_json(scores: Mapping[str, Score]) -> dict[str, Json]:
    """The layout of metrics in manifests: {metric: {value, standard_error, num_examples}}."""
    return {
        metric: {
            "value": _finite(score.value),
            "standard_error": _finite(score.standard_error),
            "num_examples": score.num_examples,
        }
        for metric, score in scores.items()
    }


def bootstrap(
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
