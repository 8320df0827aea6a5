"""Where a training run starts, and how its model is written and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.classifier import parts_of
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.quantized import refuse_quantized
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.checkpoint.tensors import write_tensors
from soupkit.errors import RecipeError
from soupkit.events import Report, Scored, Told
from soupkit.jsons import Json
from soupkit.recipe.train import Finetune
from soupkit.stages.inputs.seen import check_seen
from soupkit.stages.outputs.described import describe_inputs
from soupkit.stages.scoring.scoring import JUDGED, measured
from soupkit.task.images.classifier import ClipClassifier
from soupkit.task.images.data import open_data
from soupkit.task.images.task import ImageTask, begin, saved, task_of
from soupkit.task.randomness import Stream, seeded
from soupkit.task.spec import describe
from soupkit.task.task import Trainee
from soupkit.task.weights import arrays, load_weights
from soupkit.train.optimize import build_optimizer
from soupkit.train.probe import Probe, head_prefixes
from soupkit.world import World


@dataclass(frozen=True)
class Start:
    """Where a run starts: the base (None: random weights), and what its model learns."""

    base: Checkpoint | None
    task: ImageTask


def prepare(recipe: Finetune, world: World, report: Report) -> Start:
    """Open base and data and build the model; refuse settings that cannot work with them. Trains nothing."""
    base = open_checkpoint(recipe.base) if recipe.base is not None else None
    refuse_quantized([base] if base else [])
    spec = describe(base, recipe.model)
    splits = open_data(recipe)
    if base is not None:
        check_seen([base], splits, recipe, report, selects=False)
    if recipe.batch_size > len(splits.train):
        raise RecipeError(
            f"batch_size is {recipe.batch_size}, but there are {len(splits.train)} training examples",
            hint=f"--batch-size {max(1, len(splits.train) // 4)}",
        )
    # Only a new head is random when there is a base; it is the same for all, since a soup needs a common
    # start.
    with seeded(recipe.seed if base is None else 0, Stream.INITIALISATION):
        spec, model, head = begin(base, spec, splits, recipe, device=world.torch_device())
    if recipe.trainable == "head":
        Probe(model)
    build_optimizer(model, recipe)
    if base is not None or head:
        load_weights(saved(model), _starting(base, saved(model), head, report))
    return Start(base, task_of(model, spec, splits, recipe, world.alone()))


def score_written(
    directory: Path, task: Trainee, recipe: Finetune, world: World, report: Report, *, name: str = ""
) -> Json:
    """Metrics on held-out and test of what was written, read back from the disk; `name`: of an average beside
    it."""
    metrics = measured(task.reopened(directory, recipe, world))
    for split in JUDGED:
        metric, score = next(iter(metrics[split].items()))
        numbers = (score["value"], score["standard_error"], score["num_examples"])
        report(Scored(split, metric, *numbers, f"{recipe.out.name}/{name}" if name else recipe.out.name))
    return metrics


def write_model(directory: Path, task: Trainee) -> str:
    """Weights and configuration; returns the content hash of the weights."""
    weights = task.tensors()
    write_tensors(directory, weights, file_name=task.file_name)
    task.write_config(directory)
    return content_hash(weights, threads=1)


def _starting(
    base: Checkpoint | None, model: torch.nn.Module, head: Mapping[str, np.ndarray], report: Report
) -> Mapping[str, np.ndarray]:
    """The base's tensors, with `head` in the place of its own, or with the model's own random one where the
    base's is for another number of classes."""
    own, prefixes = arrays(model), head_prefixes(model)
    if base is None:
        return own | dict(head)
    names = [name for name in own if name.startswith(prefixes)] if prefixes else []
    if not head and not all(name in base and base.slots[name].shape == own[name].shape for name in names):
        old = next((base.slots[name].shape[0] for name in names if name in base), 0)
        report(
            Told(
                f"the base's head has {old} classes, the data {own[names[0]].shape[0]}: the head starts from "
                f"random weights"
            )
        )
        head = {name: own[name] for name in names}
    dropped = set(parts_of(base)) - set(model.form.parts) if isinstance(model, ClipClassifier) else set()
    if not head and not dropped:
        return base
    kept = (name for name in base if name.partition(".")[0] not in dropped)
    return {name: base[name] for name in kept if not (head and name.startswith(prefixes))} | dict(head)


def describe_base(base: Checkpoint | None, recipe: Finetune, world: World) -> list[Json]:
    """The manifest's record of the base; empty for random weights."""
    if base is None:
        return []
    return describe_inputs([base], recipe.out, [content_hash(base, threads=world.num_threads)])


def model_bytes(model: torch.nn.Module) -> int:
    """The size of the model's weights and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
