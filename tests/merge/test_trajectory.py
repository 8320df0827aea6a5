"""Coefficients along a training: equal to the decay that they stand for, stepped in float64; and windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soupkit.errors import RecipeError
from soupkit.merge import trajectory as along
from soupkit.merge.running import Ema, coefficients
from soupkit.merge.windows import Units, half_life, read_curve, read_losses, rows_of

DECAYS: dict[str, tuple[along.Integral, Callable[[float], float]]] = {
    "linear": (along.linear, lambda s: 1 - s),
    "minus-sqrt": (along.power(0.5), lambda s: 1 - math.sqrt(s)),
    "cosine": (along.cosine, lambda s: (1 + math.cos(math.pi * s)) / 2),
    "power 3": (along.power(3), lambda s: 1 - s**3),
    "file": (
        along.curve(np.array([0, 0.3, 0.4, 1]), np.array([1, 1, 0.5, 0.1])),
        lambda s: float(np.interp(s, [0, 0.3, 0.4, 1], [1, 1, 0.5, 0.1])),
    ),
}
STEPS = [3, 4, 9, 21, 22, 40]
GAPS = st.lists(st.integers(1, 50), min_size=1, max_size=12)


def trained(rates: np.ndarray, gradients: np.ndarray, start: np.ndarray) -> list[np.ndarray]:
    """Weights after every step of SGD whose gradients do not depend on the weights."""
    return [*start + np.cumsum(-rates[:, None] * gradients, axis=0)]


@pytest.mark.parametrize("name", DECAYS)
def test_merging_is_decaying_where_gradients_stay_between_checkpoints(name: str) -> None:
    """SGD on a linear loss, a constant rate; then once more with the decay from the first checkpoint on."""
    integral, decay = DECAYS[name]
    rng = np.random.default_rng(0)
    pieces = rng.normal(size=(len(STEPS), 5))
    gradients = np.repeat(pieces, np.diff([0, *STEPS]), axis=0)
    start, rates = rng.normal(size=5), np.full(STEPS[-1], 0.1)
    kept = [trained(rates, gradients, start)[step - 1] for step in STEPS]
    first, last = STEPS[0], STEPS[-1]
    fine = 400  # of each step, the rate at that many places: the decay is continuous
    within = [
        (t - first + (i + 0.5) / fine) / (last - first) for t in range(first, last) for i in range(fine)
    ]
    rates[first:] *= np.array([decay(s) for s in within]).reshape(-1, fine).mean(axis=1)
    decayed = trained(rates, gradients, start)[-1]
    merged = along.decayed(integral, np.array(STEPS, float)) @ np.array(kept)
    np.testing.assert_allclose(merged, decayed, rtol=1e-5)
    assert not np.allclose(merged, kept[-1], rtol=1e-2)


@pytest.mark.parametrize("name", DECAYS)
def test_merging_is_a_decay_in_stairs_whatever_the_gradients(name: str) -> None:
    """With one rate between two checkpoints, their mean, the equality is exact for any gradients."""
    rng = np.random.default_rng(1)
    gradients, start, rates = rng.normal(size=(STEPS[-1], 5)), rng.normal(size=5), np.full(STEPS[-1], 0.1)
    kept = np.array([trained(rates, gradients, start)[step - 1] for step in STEPS])
    column = along.decayed(DECAYS[name][0], np.array(STEPS, float))
    stairs = np.cumsum(column[::-1])[::-1][1:]  # w_i = c_i + … + c_K
    rates[STEPS[0] :] *= np.repeat(stairs, np.diff(STEPS))
    np.testing.assert_allclose(column @ kept, trained(rates, gradients, start)[-1], rtol=1e-13)


def test_coefficients_of_equal_steps_are_the_published_ones() -> None:
    """c_j = w_j − w_{j+1} with w in the middle of each interval: a linear decay is the trapezoid rule."""
    column = along.decayed(along.linear, np.arange(5.0))
    np.testing.assert_allclose(column, [0.125, 0.25, 0.25, 0.25, 0.125], atol=1e-15)


@pytest.mark.parametrize("name", DECAYS)
@given(gaps=GAPS)
def test_they_sum_to_one_and_do_not_know_units(name: str, gaps: list[int]) -> None:
    steps = np.cumsum([7.0, *gaps])
    column = along.decayed(DECAYS[name][0], steps)
    assert column.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(column, along.decayed(DECAYS[name][0], 1000 * steps - 5), atol=1e-9)


@given(gaps=GAPS)
def test_ema_halves_its_weights_within_a_half_life(gaps: list[int]) -> None:
    """Stepped in float64; of evenly spaced checkpoints it is `merge ema` with the decay 2^(−gap /
    half-life)."""
    steps, values = np.cumsum([0.0, *gaps]), np.random.default_rng(0).normal(size=len(gaps) + 1)
    average, seen, biased = values[0], 0.0, 0.0
    for gap, value in zip([gaps[0], *gaps], values):
        decay = 0.5 ** (gap / 10)
        biased, seen = decay * biased + (1 - decay) * value, decay * seen + (1 - decay)
    for gap, value in zip(gaps, values[1:]):
        average += (1 - 0.5 ** (gap / 10)) * (value - average)
    assert along.ema(steps, 10) @ values == pytest.approx(average, rel=1e-9, abs=1e-12)
    assert along.ema(steps, 10, debias=True) @ values == pytest.approx(biased / seen, rel=1e-9, abs=1e-12)
    even = along.ema(np.arange(6) * 5.0, 10)
    np.testing.assert_allclose(even, coefficients(Ema(0.5**0.5), 6), rtol=1e-12)


def test_bema_is_its_algorithm_stepped() -> None:
    steps, values = np.array([0.0, 400, 800, 1600]), np.random.default_rng(0).normal(size=4)
    average = values[0]
    for step, value in zip(steps[1:], values[1:]):
        beta = (10 + step) ** -0.5
        average = (1 - beta) * average + beta * value
        corrected = average + (10 + step) ** -0.2 * (value - values[0])
    column = along.bema(steps)
    assert column @ values == pytest.approx(corrected, rel=1e-12)
    assert column.sum() == pytest.approx(1)


def reference_valley(losses: list[float], patience: int, overfits: int, tolerance: float) -> range:
    """Algorithm 1 of SWAD, line by line, counting from one."""
    begin, end, limit = 0, len(losses), None
    at = lambda i: losses[i - 1]  # noqa: E731
    for i in range(1, len(losses) + 1):
        if limit is None:
            if i >= patience and at(i - patience + 1) == min(at(i - k) for k in range(patience)):
                begin = i - patience + 1
                limit = tolerance / patience * sum(at(i - k) for k in range(patience))
        elif i >= overfits and limit < min(at(i - k) for k in range(overfits)):
            end = i - overfits
            break
    return range(begin - 1, end)


@given(
    losses=st.lists(st.integers(1, 30).map(float), min_size=3, max_size=40),
    patience=st.integers(1, 4),
    overfits=st.integers(1, 5),
)
def test_swad_finds_its_valley(losses: list[float], patience: int, overfits: int) -> None:
    losses = [*losses, *[losses[-1] + 1] * patience]  # so that a valley begins
    found = along.valley(losses, patience=patience, overfits=overfits, tolerance=1.3)
    assert found == reference_valley(losses, patience, overfits, 1.3)


def test_a_loss_that_only_falls_has_no_valley() -> None:
    with pytest.raises(RecipeError, match="only fall"):
        along.valley([5, 4, 3, 2, 1])


ALL = np.array([10e3, 20e3, 40e3, 80e3, 100e3])


@pytest.mark.parametrize(
    ("window", "rows"),
    [
        ("..", range(5)),
        ("20k..80k", range(1, 4)),
        ("2e4..0.08M", range(1, 4)),
        ("15k..", range(1, 5)),
        ("..40000", range(3)),
        ("40%..80%", range(2, 4)),
        ("1Btok..4Btok", range(3)),
        ("last2", range(3, 5)),
        ("swad", range(1, 3)),
    ],
)
def test_windows_hold_their_ends(window: str, rows: range) -> None:
    losses = np.array([15e3, 25e3, 45e3, 50e3, 90e3]), np.array([1.0, 1, 1, 9, 9])
    assert rows_of(window, ALL, tokens_per_step=1e5, losses=losses, swad=(2, 2, 1.1)) == rows


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("41k..42k", "holds no checkpoint"),
        ("80k..20k", "ends before it begins"),
        ("20k", "expected FIRST..LAST"),
        ("a..b", "is no number of steps"),
        ("1Btok..", "counts tokens"),
        ("last6", "there are 5 checkpoints"),
    ],
)
def test_other_windows_are_refused(window: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        rows_of(window, ALL)


def test_half_lives_and_files(tmp_path: Path) -> None:
    assert half_life("10%", Units(2000.0)) == 200
    assert half_life("4ktok", Units(2000.0, 8.0)) == 500
    with pytest.raises(RecipeError, match="more than 0"):
        half_life("0", Units(1.0))
    file = tmp_path / "decay.csv"
    file.write_text("# share, rate\n0,1\n0.5,1\n1,0\n")
    np.testing.assert_allclose(along.decayed(read_curve(file), np.arange(5.0)), [0, 0, 0.25, 0.5, 0.25])
    state = tmp_path / "trainer_state.json"
    state.write_text('{"log_history": [{"step": 5, "loss": 1}, {"step": 5, "eval_loss": 2.5}]}')
    assert [each.tolist() for each in read_losses(state)] == [[5.0], [2.5]]
    for text, message in (("0 1\n", "shares of the window"), ("0 1 2\n", "two numbers"), ("", "two numbers")):
        file.write_text(text)
        with pytest.raises(RecipeError, match=message):
            read_curve(file)
    state.write_text("[]")
    with pytest.raises(RecipeError, match="log_history"):
        read_losses(state)
