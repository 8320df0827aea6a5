"""`merge twa`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.reference import open_references
from soupkit.errors import RecipeError
from soupkit.events import Report, Told
from soupkit.jsons import Json
from soupkit.recipe.soup import BLOCK_RATE, PUBLISHED_RATE, MergeTwa
from soupkit.recipe.train import Finetune
from soupkit.soup.fit import ReadBatches
from soupkit.soup.gram import gram_matrix
from soupkit.soup.twa import Orthonormal
from soupkit.stages.inputs.ordered import refuse_unplaced, say_order
from soupkit.stages.learning.learning import begin, dry_run, learn, settings_of
from soupkit.stages.learning.search import Outcome, Search, open_search
from soupkit.stages.learning.written import learned, write_learned
from soupkit.stages.scoring.ranked import without_the_best
from soupkit.task.images.augmented import Augmented
from soupkit.task.images.task import ImageTask
from soupkit.world import World


def merge_twa(recipe: MergeTwa, world: World, report: Report) -> Json:
    """Train in the span of historical checkpoints, write the soup, and score what was written."""
    if recipe.every > 1 or recipe.start != "average":
        refuse_unplaced(recipe.refs)
    say_order(recipe.refs, report)
    checkpoints = without_the_best(thinned(open_references(recipe.refs), recipe.every), recipe, report)
    start_N = starting_point(recipe.start, len(checkpoints))
    recipe = with_unit(recipe)
    search = open_search(recipe, checkpoints, world, report, command="merge twa")
    if recipe.dry_run:
        return dry_run(search)
    return write_learned(search, learned(search, lambda: _search(search, recipe, start_N)))


def with_unit(recipe: MergeTwa) -> MergeTwa:
    """The recipe with --step auto and the default learning rate as what they come to, which is what is
    recorded."""
    step = ("block" if recipe.lr is None else "distance") if recipe.step == "auto" else recipe.step
    lr = recipe.lr or (BLOCK_RATE if step == "block" else PUBLISHED_RATE)
    return replace(recipe, step=step, lr=lr)


def thinned(checkpoints: list[Checkpoint], every: int) -> list[Checkpoint]:
    """Every N-th checkpoint, from the last one backwards."""
    return checkpoints[::-1][::every][::-1]


def starting_point(start: str, num_checkpoints: int) -> np.ndarray:
    """(β, γ) of the mean or of one checkpoint, float64[K + 1]. Raises RecipeError when there is no such
    checkpoint."""
    point = np.zeros(num_checkpoints + 1)
    point[-1] = 1
    if start != "average":
        number = int(start)
        if not -num_checkpoints <= number < num_checkpoints:
            raise RecipeError(
                f"start is {start}, but there are {num_checkpoints} checkpoints", hint="--start average"
            )
        point[number % num_checkpoints] = 1
    return point


def _search(search: Search, recipe: MergeTwa, start_N: np.ndarray) -> Outcome:
    """The Gram matrix, then SGD on the coordinates; the directions are in memory only in here."""
    model = begin(search)
    gram_BNN = search.journal.result("gram")
    if gram_BNN is None:
        checkpoints = search.ingredients.checkpoints
        gram_BNN = gram_matrix(checkpoints, search.layout, world=search.world, report=search.report)
        search.journal.finish("gram", torch.from_numpy(gram_BNN))

    def make() -> Orthonormal:
        return Orthonormal(
            np.asarray(gram_BNN), start_N, step="block" if recipe.step == "block" else "distance"
        )

    ranks = make().ranks
    search.report(Told(f"{search.num_ingredients} checkpoints span {_ranks(ranks)} dimensions"))
    subspace = search.subspace(search.mean_KB())
    run, found, chosen = learn(
        search,
        model,
        subspace,
        make,
        replace(
            settings_of(recipe, search.memory),
            optimizer="sgd",
            momentum=recipe.momentum,
            schedule=recipe.schedule,
        ),
        read=_augmented(search.soup.task, recipe) if recipe.fit == "train" and recipe.augment else None,
    )
    beta, gamma = (part.detach().numpy() for part in run.coordinates.point())
    notes = {"cross_fitting": chosen, "dimensions": ranks}
    coefficients = subspace.coefficients(beta, gamma)
    return Outcome(coefficients, {"all": found.losses}, chosen.get("mean_scores", []), notes)


def _ranks(ranks: list[int]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"


def _augmented(task: ImageTask, recipe: MergeTwa) -> ReadBatches:
    """Training examples as training sees them."""
    how = Finetune(
        out=recipe.out,
        base="given",
        crop_scale=recipe.crop_scale,
        hflip=recipe.hflip,
        batch_size=recipe.batch_size,
    )
    return Augmented(task, how, seed=recipe.seed, workers=recipe.workers)
