"""Where a training run starts, and how its model is written and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from soupkit.checkpoint.checkpoint import Checkpoint
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
from soupkit.task.images.data import Splits, open_data
from soupkit.task.images.models import ModelSpec, describe, image_settings, write_config
from soupkit.task.images.task import ImageTask, build_classifier, open_task, saved
from soupkit.task.images.transforms import ImageSettings, for_characters, image_mode
from soupkit.task.score import scores_to_json
from soupkit.task.weights import arrays, load_weights
from soupkit.train.loop import TrainingData
from soupkit.train.optimize import build_optimizer
from soupkit.train.probe import Probe, head_prefixes
from soupkit.train.randomness import Stream, seeded
from soupkit.world import World


@dataclass(frozen=True)
class Start:
    """Where a run starts: the base (None: random weights), the model, the data, how images are shown to
    it."""

    base: Checkpoint | None
    spec: ModelSpec
    model: torch.nn.Module
    splits: Splits
    settings: ImageSettings


class Batched(Protocol):
    """What a recipe says of batches."""

    @property
    def batch_size(self) -> int: ...
    @property
    def workers(self) -> int: ...


def prepare(recipe: Finetune, report: Report) -> Start:
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
        model = build_classifier(spec, splits, recipe)
    if recipe.trainable == "head":
        Probe(model)
    build_optimizer(model, recipe)
    if base is not None:
        load_weights(saved(model), _with_new_head(base, saved(model), report))
    settings = image_settings(saved(model), spec)
    image_mode(settings)  # refuses a number of channels that no image has
    return Start(base, spec, model, splits, for_characters(settings) if splits.characters else settings)


def task_of(start: Start, recipe: Batched, device: torch.device) -> ImageTask:
    """The model and the data as a task, in evaluation mode on `device`."""
    return ImageTask(
        start.model,
        start.spec,
        start.splits,
        start.settings,
        device=device,
        batch_size=recipe.batch_size,
        workers=recipe.workers,
    )


def score_written(
    directory: Path, splits: Splits, recipe: Finetune, world: World, report: Report, *, name: str = ""
) -> Json:
    """Metrics on held-out and test of what was written, read back from the disk; `name`: of an average beside
    it."""
    task = open_task(
        Checkpoint(directory), replace(recipe, base=str(directory), model=None), world, splits=splits
    )
    metrics = {}
    for split, examples in (("held_out", task.held_out), ("test", task.test)):
        scores = task.scores(examples)
        metrics[split] = scores_to_json(scores)
        top1 = scores["top1"]
        note = f"{recipe.out.name}/{name}" if name else recipe.out.name
        report(Scored(split, "top1", top1.value, top1.standard_error, top1.num_examples, note))
    return metrics


def write_model(directory: Path, start: Start) -> str:
    """Weights and configuration; returns the content hash of the weights."""
    weights = arrays(saved(start.model))
    write_tensors(directory, weights, file_name=file_name_of(start))
    write_config_of(directory, start)
    return content_hash(weights, threads=1)


def file_name_of(start: Start) -> str:
    """The name under which the weights' library looks for them."""
    return "open_clip_model.safetensors" if start.spec.library == "open_clip" else "model.safetensors"


def write_config_of(directory: Path, start: Start) -> None:
    """The configuration that the weights' library reads."""
    names = start.splits.class_names
    write_config(start.spec, saved(start.model), directory, class_names=names, settings=start.settings)


def _with_new_head(base: Checkpoint, model: torch.nn.Module, report: Report) -> Mapping[str, np.ndarray]:
    """The base's tensors, with the model's own random head where the base's is for another number of
    classes."""
    own = arrays(model)
    prefixes = head_prefixes(model)
    head = [name for name in own if name.startswith(prefixes)] if prefixes else []
    if all(name in base and tuple(base.specs[name].shape) == own[name].shape for name in head):
        return base
    old = next((base.specs[name].shape[0] for name in head if name in base), 0)
    report(
        Told(
            f"the base's head has {old} classes, the data {own[head[0]].shape[0]}: the head starts from "
            f"random weights"
        )
    )
    kept = {name: base[name] for name in base if not name.startswith(prefixes)}
    return kept | {name: own[name] for name in head}


def training_data(start: Start) -> TrainingData:
    """What the training split is to the loop."""
    splits = start.splits
    return TrainingData(splits.train, start.settings, splits.num_classes, splits.characters)


def describe_base(base: Checkpoint | None, recipe: Finetune, world: World) -> list[Json]:
    """The manifest's record of the base; empty for random weights."""
    if base is None:
        return []
    return describe_inputs([base], recipe.out, [content_hash(base, threads=world.num_threads)])


def model_bytes(model: torch.nn.Module) -> int:
    """The size of the model's weights and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
