"""Metrics against scikit-learn, by hand, and by brute force."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax
from scipy.stats import binom
from sklearn.metrics import log_loss, top_k_accuracy_score
from task.small import score_predictions

from soupkit.errors import TaskError
from soupkit.task.images.metrics import (
    METRICS,
    all_scores,
    direction_of,
    ensemble,
    errors_of,
    losses_of,
    margins,
    num_ahead,
)
from soupkit.task.score import Predictions, better, compare, scores_to_json, share_error


def predictions(num: int = 400, classes: int = 10, *, seed: int = 0, skill: float = 2.0) -> Predictions:
    random = np.random.default_rng(seed)
    targets = np.random.default_rng(99).integers(0, classes, num)
    logits = random.normal(size=(num, classes)) + skill * np.eye(classes)[targets] * random.random((num, 1))
    return Predictions(logits.astype(np.float32), targets)


def wilson(num: int, n: int) -> float:
    """Half of statsmodels' and Wilson's interval at z = 1, by solving (p − q)² = q(1 − q)/n for q."""
    p = num / n
    ends = np.roots([1 + 1 / n, -2 * p - 1 / n, p * p])
    return float(np.ptp(ends.real) / 2)


@pytest.mark.parametrize("num", [0, 1, 3, 40, 79, 80])
@pytest.mark.parametrize("metric", ["top1", "top5"])
def test_the_error_of_a_share_is_never_zero(num: int, metric: str) -> None:
    logits = np.where(np.arange(80)[:, None] < num, np.eye(7)[0], 1 - np.eye(7)[0]).astype(np.float32)
    score = score_predictions(Predictions(logits, np.zeros(80, np.int64)), metric)
    assert score.value == num / 80
    assert score.standard_error == pytest.approx(wilson(num, 80), rel=1e-6)
    assert score.standard_error >= 1 / (2 * 81) * (1 - 1e-9)


def test_the_error_of_a_share_is_walds_where_there_is_enough() -> None:
    assert share_error(0.25, 10_000) == pytest.approx(math.sqrt(0.25 / 10_000), rel=1e-3)


@pytest.mark.parametrize(("other", "alike"), [(2.0, False), (1.0, True)])
@pytest.mark.parametrize("right", [0, 50])
def test_models_that_are_right_on_the_same_examples_are_not_equal_for_certain(
    other: float, alike: bool, right: int
) -> None:
    """None of 50 examples tells them apart: up to 7.1 % of all may, by Wilson's 95 % bound."""
    one = np.where(np.arange(50)[:, None] < right, [1.0, 0.0], [0.0, 1.0]).astype(np.float32)
    targets = np.zeros(50, np.int64)
    found = compare(Predictions(one, targets), Predictions(one * np.float32(other), targets), METRICS["top1"])
    assert (found.difference, found.p_value) == (0, 1)
    error, bound = (0.0, 0.0) if alike else (1 / 102, 3.8415 / 53.8415)
    assert found.standard_error == pytest.approx(error)
    assert (found.low, found.high) == pytest.approx((-bound, bound), rel=1e-4)


@pytest.mark.parametrize(("metric", "k"), [("top1", 1), ("top5", 5)])
def test_counts_are_scikit_learns(metric: str, k: int) -> None:
    given_ = predictions()
    score = score_predictions(given_, metric)
    expected = top_k_accuracy_score(given_.targets, given_.outputs, k=k, labels=range(10))
    assert score.value == pytest.approx(expected, abs=0)
    assert score.num_right == round(expected * 400)
    assert score.standard_error == pytest.approx(wilson(score.num_right or 0, 400))
    assert (score.num_examples, score.num_evaluated, score.stopped) == (400, 400, False)


def test_nll_is_scikit_learns() -> None:
    given_ = predictions()
    score = score_predictions(given_, "nll")
    probabilities = softmax(given_.outputs.astype(np.float64), axis=1)
    assert score.value == pytest.approx(log_loss(given_.targets, probabilities, labels=range(10)), rel=1e-9)
    each = -np.log(probabilities[np.arange(400), given_.targets])
    assert score.standard_error == pytest.approx(each.std(ddof=1) / 20)


def logits_of(*rows: tuple[float, float]) -> np.ndarray:
    return np.log(np.array(rows)).astype(np.float32)


def test_ece_by_hand() -> None:
    """Four examples in two bins of 1/15: confidences .9, .92 (one right) and .6, .62 (both right)."""
    given_ = Predictions(
        logits_of((0.9, 0.1), (0.08, 0.92), (0.6, 0.4), (0.38, 0.62)), np.array([0, 0, 0, 1])
    )
    expected = 2 / 4 * abs(0.5 - 0.91) + (1 / 4) * abs(1 - 0.6) + (1 / 4) * abs(1 - 0.62)
    assert math.floor(0.6 * 15) == 9  # .6 closes bin 9 and .62 opens bin 10: they do not share one
    assert score_predictions(given_, "ece").value == pytest.approx(expected, rel=1e-5)


def slow_ece(given_: Predictions) -> float:
    p = softmax(given_.outputs.astype(np.float64), axis=1)
    confidence, right = p.max(1), p.argmax(1) == given_.targets
    found = 0.0
    for low, high in pairwise(np.linspace(0, 1, 16)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            found += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return found


def test_ece_by_a_loop_over_bins() -> None:
    given_ = predictions(500, skill=3.0)
    assert score_predictions(given_, "ece").value == pytest.approx(slow_ece(given_), rel=1e-9)


def test_ece_standard_error_is_its_spread_over_samples() -> None:
    values = [score_predictions(predictions(300, seed=s, skill=3.0), "ece").value for s in range(60)]
    errors = [score_predictions(predictions(300, seed=s, skill=3.0), "ece").standard_error for s in range(5)]
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.5)


@given(hnp.arrays(np.float32, (7, 6), elements=st.sampled_from([-1.0, 0.0, 1.0])), st.data())
def test_ties_go_to_the_lower_class(logits: np.ndarray, data: st.DataObject) -> None:
    targets = np.array(data.draw(st.lists(st.integers(0, 5), min_size=7, max_size=7)))
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [order[i].tolist().index(targets[i]) for i in range(7)]
    assert num_ahead(logits, targets).tolist() == expected
    assert ((logits.argmax(1) == targets) == (num_ahead(logits, targets) < 1)).all()


def test_a_model_that_answers_nothing_is_not_right() -> None:
    constant = Predictions(np.zeros((10, 10), np.float32), np.arange(10))
    assert score_predictions(constant, "top1").num_right == 1
    broken = Predictions(np.full((10, 10), np.nan, np.float32), np.arange(10))
    assert score_predictions(broken, "top1").num_right == 0
    assert (margins(broken.outputs, broken.targets) == -np.inf).all()
    assert np.isnan(losses_of(broken.outputs, broken.targets)).all()
    assert errors_of(broken.outputs, broken.targets).tolist() == [1] * 10
    for metric in ("nll", "ece"):
        with pytest.raises(TaskError, match="not numbers for 10 examples"):
            score_predictions(broken, metric)


def test_losses_and_errors_of_examples() -> None:
    logits, targets = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]], np.float32), np.array([0, 0, 1])
    assert errors_of(logits, targets).tolist() == [0, 1, 1]
    expected = -np.log(softmax(logits.astype(np.float64), 1)[np.arange(3), targets])
    assert np.allclose(losses_of(logits, targets), expected)


def test_margins_by_sorting() -> None:
    given_ = predictions(50)
    found = score_predictions(given_, "top1").margins
    assert found is not None
    assert found.dtype == np.float32
    for i in range(50):
        others = np.delete(given_.outputs[i], given_.targets[i])
        assert found[i] == given_.outputs[i, given_.targets[i]] - others.max()
    right = torch.from_numpy(given_.outputs).argmax(1).numpy() == given_.targets
    assert ((found > 0) == right).all()


def test_all_scores_leave_out_top5_of_few_classes() -> None:
    assert list(all_scores(predictions())) == ["top1", "top5", "nll", "ece"]
    assert list(all_scores(predictions(classes=5))) == ["top1", "nll", "ece"]
    with pytest.raises(TaskError, match="5 classes"):
        score_predictions(predictions(classes=5), "top5")


def test_what_cannot_be_scored() -> None:
    with pytest.raises(TaskError, match="'f1' is not known"):
        direction_of("f1")
    with pytest.raises(TaskError, match="no examples"):
        score_predictions(Predictions(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)), "top1")


NAN = math.nan


@pytest.mark.parametrize(
    ("a", "b", "in_max", "in_min"),
    [
        (2, 1, True, False),
        (1, 1, False, False),
        (1, NAN, True, True),
        (NAN, 1, False, False),
        (NAN, NAN, False, False),
    ],
)
def test_better(a: float, b: float, in_max: bool, in_min: bool) -> None:
    assert better(a, b, "max") is in_max
    assert better(a, b, "min") is in_min


def test_ensembles_by_hand() -> None:
    parts = [predictions(seed=seed) for seed in (0, 1, 2)]
    mean = np.mean([p.outputs for p in parts], axis=0)
    np.testing.assert_allclose(ensemble(parts, "logits").outputs, mean, rtol=1e-5, atol=1e-6)
    probabilities = np.mean([softmax(p.outputs.astype(np.float64), axis=1) for p in parts], axis=0)
    mixed = ensemble(parts, "softmax")
    np.testing.assert_allclose(softmax(mixed.outputs, axis=1), probabilities, rtol=1e-5)
    assert score_predictions(mixed, "nll").value == pytest.approx(
        log_loss(parts[0].targets, probabilities), rel=1e-5
    )


def test_an_ensemble_of_different_examples_is_refused() -> None:
    one = predictions()
    with pytest.raises(TaskError, match="same examples"):
        ensemble([one, Predictions(one.outputs, one.targets[::-1].copy())], "logits")


@pytest.mark.parametrize("metric", ["top1", "top5", "nll", "ece"])
def test_a_comparison_is_antisymmetric_and_of_the_values(metric: str) -> None:
    a, b = predictions(seed=0), predictions(seed=1, skill=4.0)
    there, back = compare(a, b, METRICS[metric]), compare(b, a, METRICS[metric])
    assert there.difference == pytest.approx(
        score_predictions(a, metric).value - score_predictions(b, metric).value
    )
    assert back.difference == pytest.approx(-there.difference)
    assert back.p_value == pytest.approx(there.p_value, abs=0.02)
    assert there.low < there.difference < there.high
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=2e-2)


def test_a_model_equals_itself() -> None:
    a = predictions()
    for metric in ("top1", "nll", "ece"):
        found = compare(a, a, METRICS[metric])
        assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_mcnemar_by_summing_the_tail() -> None:
    """a alone is right on 9 examples, b alone on 2."""
    targets = np.zeros(40, np.int64)
    right, wrong = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    a = np.array([right if i < 29 else wrong for i in range(40)])
    b = np.array([right if 9 <= i < 31 else wrong for i in range(40)])
    found = compare(Predictions(a, targets), Predictions(b, targets), METRICS["top1"])
    assert found.difference == pytest.approx(7 / 40)
    assert found.p_value == pytest.approx(2 * sum(binom.pmf(k, 11, 0.5) for k in range(3)))


def test_bootstrap_intervals_by_drawing_one_by_one() -> None:
    a, b = predictions(60, seed=0), predictions(60, seed=1)
    random = np.random.default_rng(5)
    drawn: dict[str, list[float]] = {"top1": [], "nll": [], "ece": []}
    for _ in range(1500):
        rows = random.integers(0, 60, 60)
        one, other = (Predictions(p.outputs[rows], p.targets[rows]) for p in (a, b))
        top1 = [(p.outputs.argmax(1) == p.targets).mean() for p in (one, other)]
        log_p = [np.log(softmax(p.outputs.astype(np.float64), axis=1)) for p in (one, other)]
        nll = [-x[np.arange(60), one.targets].mean() for x in log_p]
        drawn["top1"].append(float(top1[0] - top1[1]))
        drawn["nll"].append(float(nll[0] - nll[1]))
        drawn["ece"].append(float(slow_ece(one) - slow_ece(other)))
    for metric, values in drawn.items():
        found = compare(a, b, METRICS[metric])
        low, high = np.quantile(values, [0.025, 0.975])
        assert found.low == pytest.approx(low, abs=0.1 * (high - low))
        assert found.high == pytest.approx(high, abs=0.1 * (high - low))
        assert found.standard_error == pytest.approx(np.std(values), rel=0.1)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Two models of one skill: zero lies within the 95 % interval of about 95 % of the samples."""
    covered = 0
    for seed in range(100):
        a, b = (predictions(150, seed=2 * seed + i) for i in (0, 1))
        found = compare(a, b, METRICS["nll"], seed=seed)
        covered += found.low <= 0 <= found.high
    assert 88 <= covered <= 99


def test_large_n_is_drawn_in_chunks_with_the_same_law(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = predictions(300, seed=0), predictions(300, seed=1)
    whole = compare(a, b, METRICS["nll"])
    monkeypatch.setattr("soupkit.task.score._CHUNK_BYTES", 8 * 300 * 64)
    chunked = compare(a, b, METRICS["nll"])
    assert (chunked.low, chunked.high) == pytest.approx(
        (whole.low, whole.high), abs=0.1 * (whole.high - whole.low)
    )


def test_json() -> None:
    found = scores_to_json({"top1": score_predictions(predictions(), "top1")})
    assert set(found["top1"]) == {"value", "standard_error", "num_examples"}
    assert found["top1"]["num_examples"] == 400
