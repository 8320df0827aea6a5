"""Members as recipes: each has its own seed and one combination of the regularisation lists."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np

from soupkit.errors import RecipeError
from soupkit.recipe.population import TrainPopulation
from soupkit.recipe.train import Finetune
from soupkit.task.randomness import Stream

REGULARISATION = ("mixup", "label_smoothing", "cutmix", "random_erasing")


def member_name(number: int) -> str:
    """The folder of a member."""
    return f"member-{number:03d}"


def regularisation(recipe: TrainPopulation) -> list[dict[str, float]]:
    """What regularises each member: combination (member mod count) of the shuffled product of the four lists.

    PAPA's way of making members differ (Jolicoeur-Martineau et al. 2024, arXiv:2304.03094, section 4).
    """
    lists = [getattr(recipe, name) for name in REGULARISATION]
    combinations = [dict(zip(REGULARISATION, values, strict=True)) for values in product(*lists)]
    order = np.random.default_rng([recipe.seed, Stream.REGULARISATION]).permutation(len(combinations))
    return [combinations[order[member % len(order)]] for member in range(recipe.num_members)]


def member_seed(seed: int, member: int) -> int:
    """A seed below 2³² for one member, from (seed, member) alone, whichever rank trains it."""
    return int(np.random.SeedSequence([seed, member]).generate_state(1)[0])


def member_recipes(recipe: TrainPopulation) -> list[Finetune]:
    """How each member is trained, as `soupkit finetune` would say it. Raises RecipeError, naming the
    member."""
    own = {field.name for field in dataclasses.fields(Finetune)}
    shared = {
        field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe) if field.name in own
    }
    return [_member(recipe, number, shared | values) for number, values in enumerate(regularisation(recipe))]


def _member(recipe: TrainPopulation, number: int, values: dict[str, object]) -> Finetune:
    name = member_name(number)
    own: dict[str, object] = {"out": recipe.out / name, "seed": member_seed(recipe.seed, number)}
    try:
        return Finetune(**(values | own))  # type: ignore[arg-type]
    except RecipeError as error:
        raise RecipeError(f"{name}: {error.message}", hint=error.hint) from error
