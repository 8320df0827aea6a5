"""A learned soup's search, opened and checked: model, data, blocks, journal, and what will live in memory.

Shape suffixes: K ingredients, B blocks.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from soupkit.asked import Recipe
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.tensors import parse_bytes
from soupkit.errors import RecipeError
from soupkit.events import Report, Told
from soupkit.identity import digest, file_identity
from soupkit.jsons import Json
from soupkit.merge.mixture import Mixture
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.soup import LearnedRecipe, MergeLearned, MergeMehl, MergeTwa
from soupkit.soup import subspace as spaces
from soupkit.soup.blocks import Layout
from soupkit.soup.journal import Journal
from soupkit.soup.live import layout_of
from soupkit.soup.plan import (
    SHARE_OF_FREE,
    Demand,
    MemoryPlan,
    choose,
    free_bytes,
    give_back_memory,
    resident_bytes,
)
from soupkit.soup.subspace import Subspace
from soupkit.stages.inputs.download import download
from soupkit.stages.inputs.seen import check_seen
from soupkit.stages.outputs.soup import Ingredients, prepare
from soupkit.stages.scoring.scoring import REFRESHING, SoupTask
from soupkit.task.batch_norm import has_batch_norm
from soupkit.task.images.metrics import direction_of
from soupkit.task.task import Examples
from soupkit.world import World

HOW_NOT_WHAT = (
    *("out", "overwrite", "dry_run", "device", "threads", "plots", "sha256", "max_shard_size", "workers"),
    *("resume", "force", "strict_data"),
)
"""Options that a journal does not depend on."""


@dataclass
class Search:
    """A search that has been opened and checked."""

    recipe: LearnedRecipe
    world: World
    report: Report
    command: str
    ingredients: Ingredients
    soup: SoupTask
    layout: Layout
    journal: Journal
    memory: MemoryPlan
    head_moves: bool = False
    """Whether weights that make the model's head change along the directions."""
    began: float = field(default_factory=time.perf_counter)

    @property
    def examples(self) -> Examples:
        """What coefficients are learned from."""
        return examples_of(self.recipe, self.soup)

    @property
    def refreshes(self) -> bool:
        """Whether there are batch-norm statistics to re-estimate."""
        return self.recipe.bn in REFRESHING and has_batch_norm(self.soup.task.model)

    @property
    def batch_statistics(self) -> bool:
        """Whether batch norm learns in training mode."""
        return self.recipe.bn == "batch" and has_batch_norm(self.soup.task.model)

    @property
    def num_ingredients(self) -> int:
        return len(self.ingredients.checkpoints)

    @property
    def span(self) -> spaces.Ingredients:
        """The ingredients as a `Subspace` takes them."""
        return spaces.Ingredients(self.ingredients.checkpoints, self.layout)

    def subspace(self, center_KB: np.ndarray, rows: Sequence[int] | None = None) -> Subspace:
        """The directions of some ingredients from a centre, in the form that the plan chose."""
        return Subspace(
            self.span,
            center_KB,
            rows=rows,
            form=self.memory.form,
            world=self.world,
            device=self.soup.task.device,
            report=self.report,
        )

    def mean_KB(self) -> np.ndarray:
        """The coefficients of the uniform soup."""
        return np.full((self.num_ingredients, self.layout.num_blocks), 1 / self.num_ingredients)

    def mixture(self, coefficients_KB: np.ndarray) -> Mixture:
        """Coefficients of the parameters as a mixture; all other tensors, outside the span, are averaged or
        kept."""
        names = self.ingredients.names
        keep = self.recipe.bn == "keep"
        return self.layout.mixture(names, coefficients_KB, self.ingredients.plan.slots, keep_first=keep)


def examples_of(recipe: LearnedRecipe, soup: SoupTask) -> Examples:
    """What coefficients are learned from."""
    trains = isinstance(recipe, MergeTwa) and recipe.fit == "train"
    return soup.task.train if trains else soup.task.held_out


@dataclass
class Outcome:
    """What a search came to: the coefficients, the losses of its runs by name, scores over folds, and
    notes."""

    coefficients_KB: np.ndarray
    losses: dict[str, list[float]] = field(default_factory=dict)
    fold_scores: list[float] = field(default_factory=list)
    notes: Json = field(default_factory=dict)


def open_search(
    recipe: LearnedRecipe,
    checkpoints: list[Checkpoint],
    world: World,
    report: Report,
    *,
    command: str,
    together: bool = True,
) -> Search:
    """Open model and data, plan the memory, and find what a killed run left. Raises for all that can be known
    now.

    together: the method needs the directions of all ingredients at once.
    """
    direction_of(recipe.metric)
    ingredients = prepare(checkpoints, recipe, report)
    download(ingredients.checkpoints, report)
    soup = SoupTask(ingredients, recipe, world)
    check_seen(checkpoints, soup.task.splits, recipe, report)
    recipe = soup.recipe = _settled(recipe, soup, report)
    _enough_examples(recipe, soup)
    layout = layout_of(soup.task, ingredients.plan.slots, recipe.blocks)
    journal = Journal.beside(
        recipe.out, identity_of(recipe, checkpoints, soup), world=world, resume=recipe.resume
    )
    moves = world.in_main(lambda: _head_moves(recipe, soup))

    def plan() -> MemoryPlan:
        return _plan(recipe, soup, layout, journal, world, together=together, head_moves=moves)

    memory = world.broadcast(plan() if world.is_main else None)
    return Search(recipe, world, report, command, ingredients, soup, layout, journal, memory, moves)


def _settled(recipe: LearnedRecipe, soup: SoupTask, report: Report) -> LearnedRecipe:
    """The recipe with --bn auto as what it comes to, which is what is recorded. Raises RecipeError."""
    there = has_batch_norm(soup.task.model)
    if recipe.bn == "auto":
        recipe = dataclasses.replace(recipe, bn="batch" if there else "refresh")
    if recipe.bn != "batch" or not there:
        if recipe.bn == "batch":
            report(Told("the model has no batch norm: --bn batch changes nothing"))
        return recipe
    if 0 < recipe.pass_size < recipe.batch_size:
        raise RecipeError(
            f"pass_size is {recipe.pass_size}, but --bn batch takes the statistics of "
            f"{recipe.batch_size} examples",
            hint=f"--batch-size {recipe.pass_size}, or --bn refresh",
        )
    if recipe.batch_size < 2:
        raise RecipeError("batch_size is 1, but --bn batch needs two examples", hint="--batch-size 128")
    if soup.world.size > 1:
        report(
            Told("--bn batch: the first process computes each batch whole; the others hold their directions")
        )
    return recipe


def _enough_examples(recipe: LearnedRecipe, soup: SoupTask) -> None:
    """Raise RecipeError where a fold would learn from no example, or one alone be a batch's statistics."""
    num = len(examples_of(recipe, soup))
    learning = num - -(-num // recipe.folds) if recipe.folds else num
    least = 2 if recipe.bn == "batch" and has_batch_norm(soup.task.model) else 1
    if learning < least:
        raise RecipeError(
            f"coefficients would be learned from {learning} of {num} examples, expected at least {least}",
            hint="a larger --num-held-out, fewer --folds, or --bn refresh",
        )


def _head_moves(recipe: LearnedRecipe, soup: SoupTask) -> bool:
    """Whether weights that make the head differ among the ingredients, or are scaled by what is learned."""
    if soup.task.head is None:
        return False
    names = sorted(soup.task.head.makers() & soup.ingredients.plan.slots.keys())
    scales = isinstance(recipe, MergeTwa) or (
        isinstance(recipe, MergeLearned) and recipe.constraint == "none"
    )
    if names and scales:
        return True
    first, *others = soup.ingredients.checkpoints
    return any(not np.array_equal(first[name], other[name]) for name in names for other in others)


def identity_of(recipe: Recipe, checkpoints: Sequence[Checkpoint], soup: SoupTask) -> str:
    """What a search depends on: options, weight files as they lie there, model and data."""
    options = {key: value for key, value in recipe_to_json(recipe).items() if key not in HOW_NOT_WHAT}
    files = [
        [each.reference, each.remote.commit]
        if each.remote is not None
        else [file_identity(file, most=0) for file in each.files]
        for each in checkpoints
    ]
    return digest(options, files, soup.task.fingerprint())


def _plan(
    recipe: LearnedRecipe,
    soup: SoupTask,
    layout: Layout,
    journal: Journal,
    world: World,
    *,
    together: bool,
    head_moves: bool,
) -> MemoryPlan:
    """The plan of an interrupted run of the same command, since results depend on it in the last bits, or a
    new one."""
    kept = journal.result("plan")
    if kept is not None:
        return MemoryPlan(**{**kept, "parts": tuple(map(tuple, kept["parts"]))})
    whole = recipe.bn == "batch" and has_batch_norm(soup.task.model)
    process, free, examples = _memory_now(soup)
    head = soup.task.head
    demand = Demand(
        layout,
        len(soup.ingredients.checkpoints),
        recipe.batch_size,
        soup.task.example_bytes(),
        process,
        examples=examples,
        num_ranks=world.size,
        together=together,
        head=head.passed() if head and head_moves else None,
    )
    plan = choose(
        demand,
        limit=parse_bytes(recipe.max_memory) if recipe.max_memory else int(SHARE_OF_FREE * free),
        form=None if recipe.resident == "auto" else recipe.resident,
        model_batch=(isinstance(recipe, MergeMehl) and recipe.model_batch) or None,
        piece=recipe.pass_size or (recipe.batch_size if whole else None),
    )
    if not recipe.dry_run:
        journal.finish("plan", dataclasses.asdict(plan))
    return plan


def _memory_now(soup: SoupTask) -> tuple[int, int, int]:
    """Bytes of this process, bytes that it may have, those included, and bytes of decoded examples; on the
    device."""
    task = soup.task
    if task.device.type == "cuda":
        free = torch.cuda.mem_get_info(task.device)[0] + torch.cuda.memory_reserved(task.device)
        ranks = task.world.size if task.world.shares_device else 1
        return torch.cuda.memory_allocated(task.device), free // ranks, 0
    give_back_memory()
    examples = sum(part.num_bytes for part in (task.held_out, task.test, task.train))
    return resident_bytes(), free_bytes() // task.world.size, examples
