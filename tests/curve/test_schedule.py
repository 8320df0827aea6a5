"""Learning rates, against values worked out by hand from the papers' formulas."""

from __future__ import annotations

import math

import pytest

from soupkit.curve.schedule import Cycles, curve_rate


def test_the_published_rate_of_a_curve() -> None:
    rate = curve_rate(0.03, 1000)
    assert rate(0) == rate(500) == 0.03
    assert rate(700) == pytest.approx(0.03 * 0.505)  # half of the way from 1 to 0.01
    assert rate(900) == pytest.approx(0.0003)
    assert rate(999) == pytest.approx(0.0003)
    rates = [rate(update) for update in range(1000)]
    assert rates == sorted(rates, reverse=True)


def test_fge_goes_down_and_up_in_a_triangle() -> None:
    """c = 8 updates, 0.05 and 0.01: a step of (0.05 − 0.01) / 4 per update."""
    cycles = Cycles("fge", 0.05, 0.01, 8)
    expected = [0.05, 0.04, 0.03, 0.02, 0.01, 0.02, 0.03, 0.04] * 2
    assert [cycles.rate(update) for update in range(16)] == pytest.approx(expected)


def test_fge_keeps_the_model_in_mid_cycle_when_the_rate_is_lowest() -> None:
    cycles = Cycles("fge", 0.05, 0.01, 8)
    assert [done for done in range(25) if cycles.keeps(done)] == [4, 12, 20]
    assert cycles.rate(4) == pytest.approx(0.01)


def test_fge_as_the_published_code_counts_epochs() -> None:
    """t = ((epoch mod c) + iteration / N) / c with c = 4 epochs of N = 5 batches."""
    cycles = Cycles("fge", 0.05, 0.01, 20)
    for epoch in range(8):
        for iteration in range(5):
            t = (epoch % 4 + iteration / 5) / 4
            expected = (
                0.05 * (1 - 2 * t) + 0.01 * 2 * t if t <= 0.5 else 0.05 * (2 * t - 1) + 0.01 * (2 - 2 * t)
            )
            assert cycles.rate(epoch * 5 + iteration) == pytest.approx(expected)


def test_snapshot_is_half_a_cosine_with_restarts() -> None:
    cycles = Cycles("snapshot", 0.1, 0.0, 4)
    expected = [0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5)), 0.1]
    assert [cycles.rate(update) for update in range(5)] == pytest.approx(expected)
    assert [done for done in range(13) if cycles.keeps(done)] == [4, 8, 12]


def test_swa_goes_straight_down_to_the_least_at_the_end_of_a_cycle() -> None:
    """Izmailov et al.: t(i) = (mod(i − 1, c) + 1)/c for i = 1, 2, …; their c = 4, α_1 = 0.05, α_2 = 0.01."""
    cycles = Cycles("swa", 0.05, 0.01, 4)
    assert [cycles.rate(update) for update in range(5)] == pytest.approx([0.04, 0.03, 0.02, 0.01, 0.04])
    assert [done for done in range(9) if cycles.keeps(done)] == [4, 8]
    assert Cycles("swa", 0.05, 0.01, 1).rate(7) == pytest.approx(0.01)  # a constant rate
