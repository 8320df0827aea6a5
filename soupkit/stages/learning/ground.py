"""No learned soup leaves the ground: one clearly worse than the uniform soup on held-out data is not written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from soupkit.errors import TaskError
from soupkit.events import Warned
from soupkit.stages.learning.search import Outcome, Search
from soupkit.stages.scoring.scoring import SoupTask
from soupkit.task.score import Predictions, compare

TOO_MANY = 3.0
"""Standard errors of the paired difference on the same examples."""


def keep_the_better(search: Search, outcome: Outcome) -> None:
    """Compare what would be written with the uniform soup; put the latter in its place where it is clearly better.

    outcome.notes["against_uniform"]: split, metric, difference (learned less uniform), standard_error, num_examples,
    kept_uniform. `--force` writes what was learned and says how much worse it is.
    """
    verdict = _verdict(search, outcome.coefficients_KB)
    kept = verdict["clearly_worse"] and not search.recipe.force
    outcome.notes["against_uniform"] = verdict | {"kept_uniform": kept}
    if not verdict["clearly_worse"]:
        return
    done = "it is written (--force)" if search.recipe.force else "the uniform soup is written instead (--force: not)"
    difference = verdict["difference"]
    words = "its outputs are not numbers" if difference is None else _difference(verdict)
    search.report(Warned(f"{search.command}: on held-out data {words}: {done}; a lower --lr may help"))
    if kept:
        outcome.notes["learned_coefficients"] = outcome.coefficients_KB.tolist()
        outcome.coefficients_KB = search.mean_KB()


def _difference(verdict: dict[str, Any]) -> str:
    size = f"{verdict['difference']:+.4f} ± {verdict['standard_error']:.4f}"
    return f"{verdict['metric']} is {size} against the uniform soup"


def _verdict(search: Search, coefficients_KB: np.ndarray) -> dict[str, Any]:
    metric, task = search.recipe.metric, search.soup.task
    uniform, found = (_predictions(search, each_KB) for each_KB in (search.mean_KB(), coefficients_KB))
    named = {"split": "held_out", "metric": metric, "num_examples": len(task.held_out)}
    try:
        compared = compare(found, uniform, task.metrics[metric])
    except TaskError:  # outputs that are not numbers
        return named | {"difference": None, "standard_error": None, "clearly_worse": True}
    worse = -compared.difference if task.metrics[metric].direction == "max" else compared.difference
    return named | {
        "difference": compared.difference,
        "standard_error": compared.standard_error,
        "clearly_worse": bool(worse > TOO_MANY * compared.standard_error and worse > 0),
    }


def _predictions(search: Search, coefficients_KB: np.ndarray) -> Predictions:
    search.soup.load(search.mixture(coefficients_KB))
    return search.soup.task.predict(search.soup.task.held_out)


@contextmanager
def by_itself(soup: SoupTask) -> Iterator[None]:
    """Inside, predictions of a task are one process's own; the other ranks may wait."""
    ranks = soup.task.world
    soup.task.world = ranks.alone()
    try:
        yield
    finally:
        soup.task.world = ranks
