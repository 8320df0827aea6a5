"""What `merge learned`, `merge mehl` and `merge twa` share: open, plan the memory, learn, write.

Shape suffixes: K ingredients, B blocks.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import FLOATING
from soupkit.checkpoint.tensors import parse_bytes
from soupkit.events import Report, Told
from soupkit.jobs.download import download
from soupkit.jobs.scoring import SoupTask
from soupkit.jobs.soup import Ingredients, prepare, show_plan
from soupkit.merge.memory import combined
from soupkit.merge.mixture import Mixture
from soupkit.merge.stream import StreamOptions
from soupkit.recipe.parse import recipe_to_json
from soupkit.soup import subspace as spaces
from soupkit.soup.blocks import Layout
from soupkit.soup.coordinates import Coordinates
from soupkit.soup.fit import Fit, Learned, ReadBatches, Settings, best_epoch, folds
from soupkit.soup.journal import Journal
from soupkit.soup.live import LiveModel, activation_bytes, layout_of
from soupkit.soup.plan import SHARE_OF_FREE, Demand, MemoryPlan, choose, free_bytes, give_back_memory, resident_bytes
from soupkit.soup.subspace import Subspace
from soupkit.task.batch_norm import has_batch_norm
from soupkit.task.examples import Examples
from soupkit.task.score import direction_of, score_predictions
from soupkit.task.weights import to_torch
from soupkit.world import World

HOW_NOT_WHAT = (
    "out",
    "overwrite",
    "dry_run",
    "device",
    "threads",
    "plots",
    "sha256",
    "max_shard_size",
    "workers",
    "resume",
)
"""Options that a journal does not depend on."""


@dataclass
class Search:
    """A search that has been opened and checked."""

    recipe: Any
    world: World
    report: Report
    command: str
    ingredients: Ingredients
    soup: SoupTask
    layout: Layout
    journal: Journal
    memory: MemoryPlan
    began: float = field(default_factory=time.perf_counter)

    @property
    def examples(self) -> Examples:
        """What coefficients are learned from."""
        task = self.soup.task
        return task.train if getattr(self.recipe, "fit", "held_out") == "train" else task.held_out

    @property
    def refreshes(self) -> bool:
        """Whether there are batch-norm statistics to re-estimate."""
        return self.recipe.bn == "refresh" and has_batch_norm(self.soup.task.model)

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
        """Coefficients of the parameters as a mixture; all other tensors, outside the span, are averaged or kept."""
        names = self.ingredients.names
        keep = self.recipe.bn == "keep"
        return self.layout.mixture(names, coefficients_KB, self.ingredients.plan.slots, keep_first=keep)


def open_search(
    recipe: Any, checkpoints: list[Checkpoint], world: World, report: Report, *, command: str, together: bool = True
) -> Search:
    """Open model and data, plan the memory, and find what a killed run left. Raises for all that can be known now.

    together: the method needs the directions of all ingredients at once.
    """
    direction_of(recipe.metric)
    ingredients = prepare(checkpoints, recipe, report)
    download(ingredients.checkpoints, report)
    soup = SoupTask(ingredients, recipe, world)
    layout = layout_of(soup.task, ingredients.plan.slots, recipe.blocks)
    journal = Journal.beside(recipe.out, identity_of(recipe, checkpoints, soup), world=world, resume=recipe.resume)
    memory = world.broadcast(_plan(recipe, soup, layout, journal, world, together=together) if world.is_main else None)
    return Search(recipe, world, report, command, ingredients, soup, layout, journal, memory)


def dry_run(search: Search) -> dict[str, Any]:
    """What --dry-run prints: the memory, then the files."""
    search.report(search.memory.table())
    shown = show_plan(search.ingredients, search.recipe, search.world, search.report)
    return {**shown, "memory": search.memory.to_json()}


def begin(search: Search) -> LiveModel:
    """Say what will live where, and make the model live with the statistics that stay outside the span."""
    search.report(search.memory.table())
    if search.journal.resumed:
        search.report(Told("going on where an interrupted run of the same command stopped"))
    _load_outside(search)
    model = LiveModel(search.soup.task, search.layout, search.ingredients.plan.slots, search.world)
    give_back_memory()
    return model


def learn(
    search: Search,
    model: LiveModel,
    subspace: Subspace,
    make: Callable[[], Coordinates],
    settings: Settings,
    *,
    position: tuple[int, ...] = (),
    read: ReadBatches | None = None,
) -> tuple[Fit, Learned, dict[str, Any]]:
    """Learn coordinates in one subspace: first how many epochs, over folds, then on everything.

    Returns the run, its losses, and notes: the scores of the folds and the number of epochs that they chose.
    """
    stage = "/".join(map(str, position)) or "all"
    everything = np.arange(len(search.examples))
    read = read or (lambda pieces, _epoch: search.examples.chunks(pieces))
    before = search.soup.refresh if search.refreshes else None

    def fit(indices: np.ndarray, *place: int) -> Fit:
        where = (*position, *place)
        return Fit(make(), subspace, model, settings, read, indices, where, search.journal, search.report)

    notes: dict[str, Any] = {}
    stop_after = None
    if search.recipe.folds:
        notes = _cross_fit(search, fit, before, stage, len(everything))
        stop_after = notes["epochs"]
    run = fit(everything)
    return run, run.run(f"{stage}/learn", stop_after=stop_after, before_epoch=before), notes


def _cross_fit(
    search: Search, fit: Callable[..., Fit], before: Callable[[], Any] | None, stage: str, num_examples: int
) -> dict[str, Any]:
    """Scores of every fold after 0, 1, 2, … epochs, and the number of epochs with the best mean."""
    recipe, task = search.recipe, search.soup.task
    scores = []
    for number, (inside, outside) in enumerate(folds(num_examples, recipe.folds, recipe.seed)):
        name = f"{stage}/fold-{number}"

        def score(outside: np.ndarray = outside) -> float:
            if before:
                before()
            return score_predictions(task.predict(task.held_out, indices=outside), recipe.metric).value

        if search.journal.result(name) is None:
            search.report(Told(f"fold {number + 1} of {recipe.folds}: {len(inside)} learn, {len(outside)} score"))
            run = fit(inside, number)
            learned = run.run(
                name,
                before_epoch=before,
                after_epoch=score,
                patience=recipe.patience,
                lower_is_better=direction_of(recipe.metric) == "min",
            )
            search.journal.finish(name, learned.scores)
        scores.append(search.journal.result(name))
    best, means = best_epoch(scores, lower_is_better=direction_of(recipe.metric) == "min")
    search.report(Told(f"cross-fitting chose {best} epochs: {recipe.metric} {means[best]:.4f} on examples not learned"))
    return {"epochs": best, "metric": recipe.metric, "mean_scores": means, "fold_scores": scores}


def settings_of(recipe: Any, memory: MemoryPlan, **special: Any) -> Settings:
    """The loop's settings out of a recipe with LearnOptions."""
    return Settings(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        piece=memory.piece,
        weight_decay=recipe.weight_decay,
        clip_grad=recipe.clip_grad,
        seed=recipe.seed,
        **special,
    )


def identity_of(recipe: Any, checkpoints: Sequence[Checkpoint], soup: SoupTask) -> str:
    """What a search depends on: options, weight files as they lie there, model and data."""
    options = {key: value for key, value in recipe_to_json(recipe).items() if key not in HOW_NOT_WHAT}
    files: list[Any] = []
    for checkpoint in checkpoints:
        if checkpoint.remote is not None:
            files.append([checkpoint.reference, checkpoint.remote.commit])
        else:
            stats = [(str(file), file.stat()) for file in checkpoint.files]
            files.append([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
    return json.dumps([options, files, soup.task.fingerprint()], sort_keys=True, default=str)


def _plan(recipe: Any, soup: SoupTask, layout: Layout, journal: Journal, world: World, *, together: bool) -> MemoryPlan:
    """The plan of an interrupted run of the same command, since results depend on it in the last bits, or a new one."""
    kept = journal.result("plan")
    if kept is not None:
        return MemoryPlan(**{**kept, "parts": tuple(map(tuple, kept["parts"]))})
    process, free, pixels = _memory_now(soup)
    demand = Demand(
        layout,
        len(soup.ingredients.checkpoints),
        recipe.batch_size,
        activation_bytes(soup.task),
        process,
        pixels=pixels,
        num_ranks=world.size,
        together=together,
    )
    plan = choose(
        demand,
        limit=parse_bytes(recipe.max_memory) if recipe.max_memory else int(SHARE_OF_FREE * free),
        form=None if recipe.resident == "auto" else recipe.resident,
        model_batch=getattr(recipe, "model_batch", 0) or None,
        piece=recipe.pass_size or None,
    )
    if not recipe.dry_run:
        journal.finish("plan", dataclasses.asdict(plan))
    return plan


def _memory_now(soup: SoupTask) -> tuple[int, int, int]:
    """Bytes of this process, bytes that it may have, those included, and bytes of decoded examples; on the device."""
    task = soup.task
    if task.device.type == "cuda":
        own = torch.cuda.memory_allocated(task.device)
        return own, torch.cuda.mem_get_info(task.device)[0] + own, 0
    give_back_memory()
    pixels = sum(part.num_bytes for part in (task.held_out, task.test, task.train))
    return resident_bytes(), free_bytes() // task.world.size, pixels


def _load_outside(search: Search) -> None:
    """Buffers of the model: those of the uniform soup, or the first ingredient's."""
    mixture = search.mixture(search.mean_KB())
    slots = {
        name: slot
        for name, slot in search.ingredients.plan.slots.items()
        if name not in search.layout.blocks and slot.dtype in FLOATING
    }
    if slots:
        options = StreamOptions(integers=search.recipe.integers, threads=1, hash=False)
        values = combined(search.ingredients.checkpoints, mixture, slots=slots, options=options)
        state = search.soup.task.saved.state_dict()
        with torch.no_grad():
            for name, value in values.items():
                state[name].copy_(to_torch(value))
