"""Searches, curves, repair and scores run on what is no image: linear regression, against closed forms.

Shapes: N rows, D weights, K ingredients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from task.fake import TOLERANCE, Fake, Rows
from torch import Tensor, nn

from soupkit.align.moments import measure
from soupkit.align.repair import ratios, target_moments
from soupkit.align.sites import Site
from soupkit.checkpoint.source import slots_of
from soupkit.curve.barrier import barrier
from soupkit.curve.bends import Bends, CurvePoint
from soupkit.curve.curve import Curve
from soupkit.curve.descent import Descent
from soupkit.errors import TaskError
from soupkit.events import silent
from soupkit.merge.mixture import Mixture
from soupkit.soup.coordinates import Coordinates
from soupkit.soup.fit import Fit, Settings
from soupkit.soup.gram import gram_matrix
from soupkit.soup.greedy import Bar, Score, greedy
from soupkit.soup.learned import Unconstrained
from soupkit.soup.live import LiveModel, layout_of
from soupkit.soup.mehl import HyperPlane
from soupkit.soup.subspace import Ingredients, Subspace
from soupkit.soup.twa import Orthonormal
from soupkit.stages.alignment.repaired import repaired
from soupkit.task.score import compare
from soupkit.task.weights import arrays
from soupkit.world import World

N, D, K = 48, 4, 3
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((N, D)).astype(np.float32)
W = (RANDOM.standard_normal(D) + 0.4 * RANDOM.standard_normal((K, D))).astype(np.float32)
Y = (X @ W.mean(0) + 0.3 * RANDOM.standard_normal(N)).astype(np.float32)
MODELS = [{"weight": row[None]} for row in W]


def line() -> Fake:
    return Fake(nn.Linear(D, 1, bias=False), Rows(torch.from_numpy(X), torch.from_numpy(Y[:, None])))


def mse(w: np.ndarray) -> float:
    return float(np.square(X.astype(np.float64) @ w - Y).mean())


def test_scores_are_those_of_the_closed_form() -> None:
    task = line()
    task.load(MODELS[0])
    scores, errors = task.scores(task.test), np.square(X.astype(np.float64) @ W[0] - Y)
    assert scores["mse"].value == pytest.approx(errors.mean(), rel=1e-5)
    assert scores["mse"].standard_error == pytest.approx(errors.std(ddof=1) / N**0.5, rel=1e-5)
    assert scores["close"].num_right == (errors < TOLERANCE**2).sum()
    with pytest.raises(TaskError, match="not this model's"):
        task.load({"other": W[:1]})


def test_two_models_are_compared_on_the_same_examples() -> None:
    task, found = line(), []
    for model in MODELS[:2]:
        task.load(model)
        found.append(task.predict(task.held_out))
    compared = compare(*found, task.metrics["mse"])
    assert compared.difference == pytest.approx(mse(W[0]) - mse(W[1]), rel=1e-4)
    assert compared.low < compared.difference < compared.high


@pytest.mark.parametrize("metric", ["mse", "close"])
def test_a_greedy_soup_is_that_of_brute_force(metric: str) -> None:
    task, names = line(), [f"m{k}" for k in range(K)]
    judge = task.metrics[metric]

    def score(mixture: Mixture, bar: Bar | None) -> Score:
        task.load({"weight": (mixture.matrix[:, 0] @ W)[None].astype(np.float32)})
        needed = bar.score.num_right if bar else None
        return task.trial(task.held_out, metric=metric, needed_right=needed)

    def value(picks: list[int]) -> float:
        outputs = X @ W[picks].mean(0)
        return judge.of(outputs[:, None], Y[:, None]).value * (1 if judge.direction == "max" else -1)

    order = sorted(range(K), key=lambda k: -value([k]))
    picks = order[:1]
    for k in order[1:]:
        picks = [*picks, k] if value([*picks, k]) >= value(picks) else picks
    assert list(greedy(names, score, direction=judge.direction).picks) == picks


def span_of(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A point of the space that a method searches, and its directions as rows."""
    mean = W.astype(np.float64).mean(0)
    return (mean, W - mean) if kind == "mehl" else (np.zeros(D), W.astype(np.float64))


@pytest.mark.parametrize("kind", ["learned", "mehl", "twa"])
def test_learned_coefficients_are_those_of_least_squares(kind: str) -> None:
    task, slots = line(), slots_of(MODELS[0])
    found = Ingredients(MODELS, layout_of(task, slots, "global"))
    space = Subspace(found, np.full((K, 1), 1 / K))
    start = np.eye(K + 1)[-1]
    make: Mapping[str, Callable[[], Coordinates]] = {
        "learned": lambda: Unconstrained(K, 1, temperature=False),
        "mehl": lambda: HyperPlane(space.norms),
        "twa": lambda: Orthonormal(gram_matrix(MODELS, found.layout), start),
    }
    rate = {"learned": 0.05, "mehl": 0.4, "twa": 0.1}[kind]
    settings = Settings(epochs=90, batch_size=N, lr=rate, piece=N // 2, schedule="cosine")
    model = LiveModel(task, found.layout, slots, World("cpu", 1))
    run = Fit(make[kind](), space, model, settings, lambda pieces, _: task.train.chunks(pieces), np.arange(N))
    losses = run.run("all").losses
    point, rows = span_of(kind)
    solution = np.linalg.lstsq(X @ rows.T, Y - X @ point, rcond=None)[0]
    best = point + solution @ rows
    assert losses[0] > losses[-1] == pytest.approx(mse(best), rel=3e-3)
    np.testing.assert_allclose(task.tensors()["weight"][0], best, atol=0.03)


def test_a_curve_is_that_of_the_closed_form() -> None:
    """θ minimises the mean of L(a θ_0 + b θ + c θ_1) over points t, a quadratic."""
    task, curve, ts = line(), Curve("bezier", 3), (np.arange(8) + 0.5) / 8
    ends = [[torch.from_numpy(row[None].copy()).requires_grad_()] for row in W[:2]]
    bends = Bends(*ends, curve, fix_start=True, fix_end=True)
    point_of = CurvePoint(task, bends)

    def gradient(number: Any, batch: Any) -> Tensor:
        point = point_of.at(ts[number % 8])
        loss = point_of(point, batch) / len(batch)
        loss.backward()
        bends.take_gradient(ts[number % 8], point, weight_decay=0.0)
        return loss.detach()

    optimizer = torch.optim.SGD(bends.parameters(), lr=0.1)
    descent = Descent(gradient, optimizer, lambda update: 1 / (1 + update / 20), 8, 25)
    descent.run(
        ((number, batch) for number in range(200) for batch in task.train.batches(batch_size=N)), silent
    )
    abc = np.array([curve.coefficients(t) for t in ts])
    target = np.linalg.lstsq(X, Y, rcond=None)[0]
    means = abc[:, 1].mean(), (abc[:, 0] * abc[:, 1]).mean(), (abc[:, 2] * abc[:, 1]).mean()
    expected = (means[0] * target - means[1] * W[0] - means[2] * W[1]) / np.square(abc[:, 1]).mean()
    np.testing.assert_allclose(bends.bends[1][0].detach().numpy()[0], expected, atol=0.03)


def between(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], at: float) -> dict[str, np.ndarray]:
    return {name: ((1 - at) * a[name] + at * b[name]).astype(a[name].dtype) for name in a}


def test_a_quadratic_has_no_barrier() -> None:
    """Between two minima of a convex loss the line lies below its chord, by λ (1 − λ) times the mean of (X
    δ)²."""
    task, at = line(), [0.0, 0.25, 1.0]
    values = []
    for point in at:
        task.load(between(MODELS[0], MODELS[1], point))
        values.append(task.metrics["mse"].columns(task.predict(task.held_out))[:, 0])
    assert barrier(np.stack(values), at).height == 0
    excess = values[1] - 0.75 * values[0] - 0.25 * values[2]
    expected = -0.25 * 0.75 * np.square(X.astype(np.float64) @ (W[1] - W[0])).mean()
    assert excess.mean() == pytest.approx(expected, rel=1e-4)


def test_a_repaired_regression_has_the_statistics_of_its_ends() -> None:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 1)).eval()

    ends = [arrays(network(seed)) for seed in (1, 2)]
    rows = Rows(torch.from_numpy(X), torch.from_numpy(Y[:, None]))
    task = Fake(network(0), rows)
    task.load(between(*ends, 0.5))

    def batches() -> Any:
        return task.train.batches(batch_size=N)

    changed, notes = repaired(
        task, ends, [0.5, 0.5], kind="forward", batches=batches, force=True, report=silent
    )
    assert set(changed) == {"0.weight", "0.bias"}
    assert notes["variance_ratios_after"]["0"] == pytest.approx(1, abs=1e-3)
    assert "mse" in notes["held_out_after"]
    twin, moments = task.twin(), []
    layer = twin.model.get_submodule("0")
    for end in ends:
        twin.load(end)
        moments.append(measure(twin.outputs, [Site("0", layer)], batches()))
    here = measure(task.outputs, [Site("0", task.model.get_submodule("0"))], batches())
    assert ratios(here, target_moments(moments, [0.5, 0.5]))["0"] == pytest.approx(1, abs=1e-3)
