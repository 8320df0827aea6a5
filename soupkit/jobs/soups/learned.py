"""`merge learned`."""

from __future__ import annotations

from soupkit.checkpoint.reference import open_references
from soupkit.events import Report
from soupkit.jsons import Json
from soupkit.recipe.soup import MergeLearned
from soupkit.soup.learned import Softmax, Unconstrained
from soupkit.stages.learning.learning import begin, dry_run, learn, settings_of
from soupkit.stages.learning.search import Outcome, Search, open_search
from soupkit.stages.learning.written import learned, write_learned
from soupkit.stages.scoring.ranked import without_the_best
from soupkit.world import World


def merge_learned(recipe: MergeLearned, world: World, report: Report) -> Json:
    """Learn coefficients on held-out data, write the soup, and score what was written."""
    checkpoints = without_the_best(open_references(recipe.refs), recipe, report)
    search = open_search(recipe, checkpoints, world, report, command="merge learned")
    if recipe.dry_run:
        return dry_run(search)
    return write_learned(search, learned(search, lambda: _search(search, recipe)))


def _search(search: Search, recipe: MergeLearned) -> Outcome:
    """The directions are in memory only in here."""
    model = begin(search)
    subspace = search.subspace(search.mean_KB())
    kind = Softmax if recipe.constraint == "softmax" else Unconstrained
    size = search.num_ingredients, search.layout.num_blocks
    run, found, chosen = learn(
        search,
        model,
        subspace,
        lambda: kind(*size, temperature=recipe.temperature),
        settings_of(recipe, search.memory),
    )
    beta, gamma = (part.detach().numpy() for part in run.coordinates.point())
    temperature = run.coordinates.temperature
    notes = {
        "cross_fitting": chosen,
        "temperature": None if temperature is None else float(temperature.detach()),
    }
    coefficients = subspace.coefficients(beta, gamma)
    return Outcome(coefficients, {"all": found.losses}, chosen.get("mean_scores", []), notes)
