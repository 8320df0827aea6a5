"""No learned soup leaves the ground: one clearly worse than the uniform soup on held-out data is not
written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.errors import TaskError
from soupkit.events import Warned
from soupkit.jsons import Json
from soupkit.stages.learning.search import Outcome, Search
from soupkit.stages.scoring.scoring import JUDGED, predict
from soupkit.task.score import Predictions, compare, scores_of, scores_to_json

TOO_MANY = 3.0
"""Standard errors of the paired difference on the same examples."""


def keep_the_better(search: Search, outcome: Outcome) -> Mapping[str, Array]:
    """Compare what was learned with the uniform soup; put the latter in its place where it is clearly better.

    outcome.notes["uniform"]: its scores. outcome.notes["against_uniform"]: split, metric, difference (learned
    less uniform), standard_error, num_examples, kept_uniform. `--force` writes what was learned and says how
    much worse it is. Returns the re-estimated batch-norm statistics of what the outcome then holds.
    """
    uniform_KB, roles = search.mean_KB(), JUDGED if search.recipe.test else JUDGED[:1]
    of_uniform = _load(search, uniform_KB)
    task = search.soup.task
    uniform = {role: predict(task, role) for role in roles}
    outcome.notes["uniform"] = {
        role: scores_to_json(scores_of(each, task.metrics)) for role, each in uniform.items()
    }
    of_learned = _load(search, outcome.coefficients_KB)
    verdict = _verdict(search, predict(task, "held_out"), uniform["held_out"])
    kept = verdict["clearly_worse"] and not search.recipe.force
    outcome.notes["against_uniform"] = verdict | {"kept_uniform": kept}
    if verdict["clearly_worse"]:
        _tell(search, verdict)
    if not kept:
        return of_learned
    outcome.notes["learned_coefficients"] = outcome.coefficients_KB.tolist()
    outcome.coefficients_KB = uniform_KB
    return of_uniform


def _load(search: Search, coefficients_KB: np.ndarray) -> Mapping[str, Array]:
    return search.soup.load(search.mixture(coefficients_KB))


def _tell(search: Search, verdict: Json) -> None:
    done = (
        "it is written (--force)"
        if search.recipe.force
        else "the uniform soup is written instead (--force: not)"
    )
    difference = verdict["difference"]
    words = "its outputs are not numbers" if difference is None else _difference(verdict)
    search.report(Warned(f"{search.command}: on held-out data {words}: {done}; a lower --lr may help"))


def _difference(verdict: Json) -> str:
    size = f"{verdict['difference']:+.4f} ± {verdict['standard_error']:.4f}"
    return f"{verdict['metric']} is {size} against the uniform soup"


def _verdict(search: Search, found: Predictions, uniform: Predictions) -> Json:
    task, metric = search.soup.task, search.recipe.metric
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
