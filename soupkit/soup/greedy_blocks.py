"""Greedy over blocks: an ingredient may join the soup of one block and stay out of another's.

Shape suffixes: K ingredients, B blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from soupkit.events import Advanced, Finished, Report, Started, silent
from soupkit.merge.mixture import Mixture
from soupkit.metrics import Direction
from soupkit.soup.greedy import Bar, Greedy, ScoreSoup, Trial, rank, score_singles, scored, without_margins

Mix = Callable[[np.ndarray], Mixture]
"""float64[K, B] coefficients, each column summing to one → the mixture."""


def greedy_by_block(
    ingredients: Sequence[str],
    score: ScoreSoup,
    labels: Sequence[str],
    *,
    mix: Mix,
    direction: Direction = "max",
    accept: Literal["ge", "gt"] = "ge",
    report: Report = silent,
) -> Greedy:
    """Wortsman et al. 2022 (arXiv:2203.05482, Recipe 1) with a set of picks per block instead of one for all.

    S_b ← {best} for every block b; for the others by rank, and for each block in order: if the soup with
    S_b ∪ {θ} in block b alone scores ≥ (or >) the soup so far, S_b ← S_b ∪ {θ}. labels: the names of the B
    blocks. With one block it is the greedy soup. Cost: K single scores and (K − 1) B trials.
    """
    num_blocks = len(labels)
    singles, best = score_singles(
        ingredients,
        score,
        lambda names, picks: mix(_means([list(picks)] * num_blocks, len(names))),
        direction,
        report,
    )
    ranking = rank(ingredients, singles, direction)
    picks = [[ranking[0]] for _ in labels]
    trials: list[Trial] = []
    report(Started("greedy trials", (len(ranking) - 1) * num_blocks, "trials"))
    for k in ranking[1:]:
        for block, label in enumerate(labels):
            tried = [[*own, k] if number == block else own for number, own in enumerate(picks)]
            bar = Bar(best, accept, direction)
            trial = score(mix(_means(tried, len(ingredients))), bar)
            accepted = bar.reached_by(trial)
            trials.append(Trial(k, without_margins(trial), accepted, label))
            report(scored(f"+ {ingredients[k]}, {label}", trial, accepted))
            report(Advanced("greedy trials"))
            if accepted:
                picks, best = tried, trial
    report(Finished("greedy trials"))
    coefficients_KB = _means(picks, len(ingredients))
    used = tuple(k for k in ranking if coefficients_KB[k].any())
    return Greedy(used, without_margins(best), tuple(singles), tuple(trials), mix(coefficients_KB))


def _means(picks: Sequence[Sequence[int]], num_ingredients: int) -> np.ndarray:
    """Column b: the mean of picks[b]."""
    coefficients_KB = np.zeros((num_ingredients, len(picks)))
    for block, own in enumerate(picks):
        coefficients_KB[list(own), block] = 1 / len(own)
    return coefficients_KB
