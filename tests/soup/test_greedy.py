"""The greedy search against a plain re-implementation, with and without early stop, on simulated
predictions."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soupkit.merge.mixture import Mixture
from soupkit.soup.greedy import Bar, Greedy, greedy, trace
from soupkit.soup.greedy_blocks import greedy_by_block
from soupkit.task.score import Score


class Simulated:
    """Models are random logits of two classes; a soup's logits are the mean: right where the mean is
    positive."""

    def __init__(self, logits: np.ndarray, *, early_stop: bool) -> None:
        self.logits = logits
        self.early_stop = early_stop
        self.evaluated = 0

    def __call__(self, mixture: Mixture, bar: Bar | None) -> Score:
        margins = (mixture.matrix[:, 0] @ self.logits).astype(np.float32)
        right = margins > 0
        if bar is not None and self.early_stop:
            assert bar.score.margins is not None
            assert bar.score.num_right is not None
            order = np.argsort(bar.score.margins, kind="stable")
            needed = bar.score.num_right + (bar.accept == "gt")
            wrong = np.cumsum(~right[order])
            if wrong[-1] > len(right) - needed:
                seen = int(np.argmax(wrong > len(right) - needed)) + 1
                self.evaluated += seen
                return Score(
                    "top1", 0.0, None, len(right), int(right[order][:seen].sum()), None, seen, stopped=True
                )
        self.evaluated += len(right)
        return Score("top1", float(right.mean()), 0.0, len(right), int(right.sum()), margins, len(right))


def plain_greedy(logits: np.ndarray, accept: str) -> list[int]:
    """Recipe 1 of the paper, by the book, on counts."""
    counts = [int((row > 0).sum()) for row in logits]
    ranking = sorted(range(len(logits)), key=lambda k: (-counts[k], f"m{k:02d}"))
    picks, best = [ranking[0]], counts[ranking[0]]
    for k in ranking[1:]:
        count = int((logits[[*picks, k]].mean(0) > 0).sum())
        if count > best or (accept == "ge" and count == best):
            picks, best = [*picks, k], count
    return picks


def names(count: int) -> list[str]:
    return [f"m{k:02d}" for k in range(count)]


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 9),
    examples=st.integers(1, 60),
    accept=st.sampled_from(["ge", "gt"]),
)
def test_picks_are_the_papers_with_and_without_early_stop(
    seed: int, count: int, examples: int, accept: Literal["ge", "gt"]
) -> None:
    rng = np.random.default_rng(seed)
    logits = (
        rng.integers(-8, 12, (count, examples)) / 4 + 1 / 64
    )  # exact in float32, never zero, many near ties
    expected = plain_greedy(logits, accept)
    for early_stop in (False, True):
        result = greedy(names(count), Simulated(logits, early_stop=early_stop), accept=accept)
        assert list(result.picks) == expected
        np.testing.assert_array_equal(np.flatnonzero(result.mixture.coefficients[:, 0]), sorted(expected))
        assert result.mixture.divisor == len(expected)


def test_early_stop_saves_evaluations() -> None:
    """Fine-tunes of one base are right on most examples together, and doubtful on the same ones."""
    rng = np.random.default_rng(0)
    logits = rng.normal(2.0, 1.5, 1000) + rng.normal(0, 0.5, (12, 1000)) - np.linspace(0, 0.6, 12)[:, None]
    full, early = (Simulated(logits, early_stop=stop) for stop in (False, True))
    assert greedy(names(12), full).picks == greedy(names(12), early).picks
    result = greedy(names(12), Simulated(logits, early_stop=True))
    assert any(trial.score.stopped for trial in result.trials)
    assert result.share_evaluated < 0.9
    assert early.evaluated < full.evaluated


def test_the_order_of_the_references_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    logits = rng.integers(-4, 6, (6, 20)) / 4 + 1 / 64
    forward = greedy(names(6), Simulated(logits, early_stop=True))
    backward = greedy(names(6)[::-1], Simulated(logits[::-1], early_stop=True))
    assert [names(6)[k] for k in forward.picks] == [names(6)[::-1][k] for k in backward.picks]


def test_a_loss_is_minimised() -> None:
    values = {(0,): 0.9, (1,): 0.5, (2,): 0.7, (1, 2): 0.4, (0, 1, 2): 0.45}

    def score(mixture: Mixture, bar: Bar | None) -> Score:
        return Score("nll", values[tuple(mixture.used())], None, 10)

    result = greedy(names(3), score, direction="min")
    assert result.picks == (1, 2)
    assert [trial.accepted for trial in result.trials] == [True, False]


def test_equal_is_accepted_by_ge_and_not_by_gt() -> None:
    def score(mixture: Mixture, bar: Bar | None) -> Score:
        return Score("f1", 0.5, None, None)

    assert greedy(names(3), score, accept="ge").picks == (0, 1, 2)
    assert greedy(names(3), score, accept="gt").picks == (0,)


def test_a_score_that_is_no_number_never_wins() -> None:
    def score(mixture: Mixture, bar: Bar | None) -> Score:
        return Score("f1", float("nan") if 0 in mixture.used() else 0.5, None, None)

    assert greedy(names(2), score).picks == (1,)


def test_the_trace_tells_each_trial() -> None:
    rng = np.random.default_rng(2)
    result = greedy(names(4), Simulated(rng.normal(0.3, 1, (4, 50)), early_stop=True))
    steps = trace(result, names(4))
    assert len(steps) == 4
    assert [step["ingredient"] for step in steps if step["accepted"]] == [names(4)[k] for k in result.picks]
    assert all(step["value"] is None for step in steps if step.get("stopped"))


@pytest.mark.parametrize("picks", [[0], [2, 0]])
def test_a_custom_mixture_is_used(picks: Sequence[int]) -> None:
    seen = []

    def mix(ingredients: Sequence[str], chosen: Sequence[int]) -> Mixture:
        seen.append(list(chosen))
        return dataclasses.replace(Mixture(tuple(ingredients), np.eye(3)[:, :1], 1.0))

    greedy(names(3), lambda mixture, bar: Score("x", 1.0, None, None), mix=mix)
    assert seen[:3] == [[0], [1], [2]]
    assert seen[3] == [0, 1]


@pytest.mark.parametrize("by_block", [False, True])
def test_only_the_margins_of_the_current_soup_are_alive(by_block: bool) -> None:
    """Of K models and K − 1 trials no more than the bar's margins, those of the trial, and one that ends."""
    gc.collect()
    logits = np.random.default_rng(3).normal(0.2, 1.0, (12, 40))
    kept: list[weakref.ref[np.ndarray]] = []
    most = 0
    plain = Simulated(logits, early_stop=True)

    def score(mixture: Mixture, bar: Bar | None) -> Score:
        nonlocal most
        most = max(most, sum(each() is not None for each in kept))
        found = plain(mixture, bar)
        if found.margins is not None:
            kept.append(weakref.ref(found.margins))
        return found

    result: Greedy
    if by_block:
        result = greedy_by_block(names(12), score, ["b"], mix=lambda c_KB: Mixture(tuple(names(12)), c_KB))
    else:
        result = greedy(names(12), score)
    assert most <= 2
    assert len(kept) > 12
    assert len(result.trials) == 11
    assert sum(each() is not None for each in kept) == 0
