"""Running averages as mixtures: closed forms against stepping, timm's decay, and the integrals of post-hoc
EMA."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from soupkit.errors import RecipeError
from soupkit.merge.running import Ema, PowerEma, Rule, Snapshot, Swa, coefficients, synthesise

RULES = st.one_of(
    st.builds(
        Ema,
        st.floats(0, 0.9999),
        every=st.integers(1, 4),
        start=st.integers(0, 5),
        gamma=st.one_of(st.none(), st.floats(0.1, 50)),
        power=st.floats(0.1, 2),
    ),
    st.builds(Swa, start=st.integers(0, 5), every=st.integers(1, 4)),
    st.builds(PowerEma, st.floats(0, 30)),
)


def stepped(rule: Rule, weights: np.ndarray) -> np.ndarray:
    """The average that the rule's recursion makes of weights [T × D]."""
    average = np.full(weights.shape[1], np.nan)  # the first rate must overwrite it
    for step, live in enumerate(weights, start=1):
        rate = rule.rate(step)
        if rate == 1:
            average = live.copy()
        elif rate is not None:
            average += rate * (live - average)
    return average


@given(RULES, st.integers(10, 60))
@settings(max_examples=150, deadline=None)
def test_coefficients_are_what_stepping_makes(rule: Rule, num_steps: int) -> None:
    weights = np.random.default_rng(0).normal(size=(num_steps, 7))
    found = coefficients(rule, num_steps)
    np.testing.assert_allclose(found @ weights, stepped(rule, weights), rtol=0, atol=1e-13)
    assert found.sum() == pytest.approx(1, abs=1e-14)
    assert (found >= 0).all()


def test_hand_worked_cases() -> None:
    assert coefficients(Ema(0.5), 4).tolist() == [0.125, 0.125, 0.25, 0.5]
    assert coefficients(Ema(0.75, every=2, start=1), 5).tolist() == [0, 0.75, 0, 0.25, 0]
    assert coefficients(Swa(start=2, every=2), 7) == pytest.approx([0, 0, 0, 0.5, 0, 0.5, 0])
    assert coefficients(PowerEma(0), 4) == pytest.approx([0.25] * 4)
    assert coefficients(PowerEma(1), 3) == pytest.approx([1 / 9, 3 / 9, 5 / 9])


def test_swa_rates_are_those_of_the_exact_mean() -> None:
    rule, mean = Swa(start=3, every=2), Fraction(0)
    for step in range(1, 40):
        if rate := rule.rate(step):
            mean += Fraction(rate).limit_denominator(100) * (step - mean)
            counted = range(5, step + 1, 2)
            assert mean == Fraction(sum(counted), len(counted))


def test_the_warmup_is_timms() -> None:
    utils = pytest.importorskip("soupkit.task.torchvision_ops") and pytest.importorskip(
        "timm.utils.model_ema"
    )
    torch = pytest.importorskip("torch")
    for start, gamma, power in ((0, 1.0, 2 / 3), (7, 12.0, 0.75)):
        theirs = utils.ModelEmaV3(
            torch.nn.Linear(1, 1), decay=0.99, update_after_step=start, use_warmup=True, warmup_gamma=gamma,
            warmup_power=power,
        )  # fmt: skip
        ours = Ema(0.99, start=start, gamma=gamma, power=power)
        for step in range(start + 1, 400):
            assert 1 - (ours.rate(step) or 0) == pytest.approx(theirs.get_decay(step), abs=1e-15)


def test_widths_are_the_papers() -> None:
    """Karras et al. 2024, §3.1: σ_rel 0.05 and 0.10 are γ 16.97 and 6.94; the width is that of the
    profile."""
    assert PowerEma.of_width(0.05).gamma == pytest.approx(16.97, abs=5e-3)
    assert PowerEma.of_width(0.10).gamma == pytest.approx(6.94, abs=5e-3)
    for sigma in (0.01, 0.05, 0.2, 0.28):
        rule = PowerEma.of_width(sigma)
        assert rule.sigma_rel == pytest.approx(sigma, rel=1e-9)
        moment = [quad(lambda t, n=n, g=rule.gamma: t**n * (g + 1) * t**g, 0, 1)[0] for n in (1, 2)]
        assert sqrt(moment[1] - moment[0] ** 2) == pytest.approx(sigma, rel=1e-6)


def test_the_profile_is_the_coefficients() -> None:
    rule, steps = PowerEma(6.94), np.arange(1.0, 81)
    np.testing.assert_allclose(rule.profile(50, steps)[:50], coefficients(rule, 50), atol=1e-15)
    assert not rule.profile(50, steps)[50:].any()


def continuous_solution(snapshots: Sequence[Snapshot], target: Snapshot) -> np.ndarray:
    """The paper's least squares, its integrals done numerically, with the sum of coefficients fixed to
    one."""

    def product(a: Snapshot, b: Snapshot) -> float:
        p = lambda s, t: (s.rule.gamma + 1) * t**s.rule.gamma / s.step ** (s.rule.gamma + 1)  # noqa: E731
        return quad(lambda t: p(a, t) * p(b, t), 0, min(a.step, b.step), epsabs=0, epsrel=1e-12, limit=200)[0]

    number = len(snapshots)
    matrix, right = np.zeros((number + 1, number + 1)), np.ones(number + 1)
    for i, a in enumerate(snapshots):
        matrix[i, number] = matrix[number, i] = 1
        right[i] = product(a, target)
        matrix[i, :number] = [product(a, b) for b in snapshots]
    return np.linalg.solve(matrix, right)[:number]


def test_synthesis_tends_to_the_papers_integrals() -> None:
    tracked = [PowerEma.of_width(sigma) for sigma in (0.05, 0.1)]
    for num_steps, tolerance in ((400, 2e-2), (40_000, 2e-4)):
        snapshots = [
            Snapshot(rule, t)
            for rule in tracked
            for t in range(num_steps // 4, num_steps + 1, num_steps // 4)
        ]
        target = Snapshot(PowerEma.of_width(0.15), num_steps)
        found, _ = synthesise(snapshots, target)
        np.testing.assert_allclose(found, continuous_solution(snapshots, target), atol=tolerance)


def test_synthesis_finds_an_ema_that_was_not_kept() -> None:
    """A random walk of weights: the mixture of snapshots is close to the EMA that stepping would have
    kept."""
    weights = np.random.default_rng(0).normal(size=(1024, 50)).cumsum(axis=0)
    tracked = [PowerEma.of_width(sigma) for sigma in (0.05, 0.1)]
    snapshots = [Snapshot(rule, t) for rule in tracked for t in range(128, 1025, 128)]
    kept = np.stack([stepped(each.rule, weights[: each.step]) for each in snapshots])
    for sigma in (0.06, 0.08, 0.12, 0.15):
        rule = PowerEma.of_width(sigma)
        wanted = stepped(rule, weights)
        found, error = synthesise(snapshots, Snapshot(rule, 1024))
        nearest = min(np.linalg.norm(each - wanted) for each in kept)
        assert np.linalg.norm(found @ kept - wanted) < 0.1 * nearest
        assert found.sum() == pytest.approx(1, abs=1e-14)
        profile = sum(x * s.rule.profile(s.step, np.arange(1.0, 1025)) for x, s in zip(found, snapshots))
        exact = rule.profile(1024, np.arange(1.0, 1025))
        assert error == pytest.approx(np.linalg.norm(profile - exact) / np.linalg.norm(exact), rel=1e-6)
    for k in (3, 11):
        found, error = synthesise(snapshots, snapshots[k])
        np.testing.assert_allclose(found, np.eye(len(snapshots))[k], atol=1e-6)
        assert error < 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ema(1.0),
        lambda: Ema(-0.1),
        lambda: Ema(0.9, every=0),
        lambda: Ema(0.9, gamma=0.0),
        lambda: Ema(0.9, power=0.0),
        lambda: Swa(start=-1),
        lambda: PowerEma(-1.0),
        lambda: PowerEma.of_width(0.2887),
        lambda: coefficients(Swa(start=5), 5),
        lambda: synthesise([Snapshot(PowerEma(1), 10)], Snapshot(PowerEma(2), 11)),
    ],
)
def test_nonsense_is_refused(make: object) -> None:
    with pytest.raises(RecipeError):
        make()  # type: ignore[operator]
