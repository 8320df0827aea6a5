"""`finetune`: train one model and write it as a checkpoint that knows how it was made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.checkpoint.tensors import write_tensors
from soupkit.errors import RecipeError, TaskError
from soupkit.events import Report, Scored, Table, Told, Wrote
from soupkit.jobs.soup import describe_inputs, describe_outputs
from soupkit.manifest import Manifest
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.train import Finetune
from soupkit.task.data import Splits, open_data
from soupkit.task.images import ImageSettings, for_characters
from soupkit.task.models import ModelSpec, build, build_tokenizer, describe, image_settings, write_config
from soupkit.task.score import all_scores, scores_to_json
from soupkit.task.task import open_task
from soupkit.task.weights import arrays, load_weights
from soupkit.task.zero_shot import ZeroShotClassifier
from soupkit.train.draws import HYPER_PARAMETERS
from soupkit.train.loop import TrainingData, fit
from soupkit.train.optimize import build_optimizer
from soupkit.train.randomness import Stream, seeded, torch_threads
from soupkit.world import World


@dataclass(frozen=True)
class Start:
    """Where a run starts: the base (None: random weights), the model, the data, how images are shown to it."""

    base: Checkpoint | None
    spec: ModelSpec
    model: torch.nn.Module
    splits: Splits
    settings: ImageSettings


def finetune(recipe: Finetune, world: World, report: Report) -> dict[str, Any]:
    """Train on train, score the written checkpoint on held-out and test; returns its manifest.

    Raises TaskError, RecipeError or OutputError before training for whatever can be known then.
    """
    began = time.perf_counter()
    with torch_threads(world.num_threads):
        device = world.torch_device()
        start = prepare(recipe, report)
        num_bytes, inputs = _num_bytes(_saved(start.model)), start.base.files if start.base else ()
        output = OutputDirectory(recipe.out, overwrite=recipe.overwrite, num_bytes=num_bytes, inputs=inputs)
        if recipe.dry_run:
            return _show_plan(start, recipe, report)
        with output as directory:
            losses = fit(start.model, _training_data(start), recipe, device=device, report=report)
            content = _write_model(directory, start)
            manifest = Manifest(
                command="finetune",
                recipe=recipe_to_json(recipe),
                inputs=_describe_base(start.base, recipe, world),
                outputs=describe_outputs(directory, content),
                metrics=score_written(directory, start.splits, recipe, world, report),
                notes=_notes(start, recipe, losses, seconds=time.perf_counter() - began),
            )
            manifest.write(directory)
    report(Wrote(recipe.out, num_bytes))
    return manifest.to_json()


def prepare(recipe: Finetune, report: Report) -> Start:
    """Open base and data and build the model; refuse settings that cannot work with them. Trains nothing."""
    base = open_checkpoint(recipe.base) if recipe.base is not None else None
    spec = describe(base, recipe.model)
    splits = open_data(recipe)
    if recipe.batch_size > len(splits.train):
        raise RecipeError(
            f"batch_size is {recipe.batch_size}, but there are {len(splits.train)} training examples",
            hint=f"--batch-size {max(1, len(splits.train) // 4)}",
        )
    # Only a new head is random when there is a base; it is the same for all, since a soup needs a common start.
    with seeded(recipe.seed if base is None else 0, Stream.INITIALISATION):
        model = _classifier(spec, splits, recipe)
    build_optimizer(model, recipe)
    if base is not None:
        load_weights(_saved(model), _with_new_head(base, _saved(model), report))
    settings = image_settings(_saved(model), spec)
    return Start(base, spec, model, splits, for_characters(settings) if splits.characters else settings)


def score_written(directory: Path, splits: Splits, recipe: Finetune, world: World, report: Report) -> dict[str, Any]:
    """Metrics on held-out and test of what was written, read back from the disk."""
    task = open_task(Checkpoint(directory), replace(recipe, base=str(directory), model=None), world, splits=splits)
    metrics = {}
    for split, examples in (("held_out", task.held_out), ("test", task.test)):
        scores = all_scores(task.predict(examples))
        metrics[split] = scores_to_json(scores)
        top1 = scores["top1"]
        report(Scored(split, "top1", top1.value, top1.standard_error, top1.num_examples, recipe.out.name))
    return metrics


def _classifier(spec: ModelSpec, splits: Splits, recipe: Finetune) -> torch.nn.Module:
    """A timm model with a head for the data's classes, or CLIP's image tower under the head that its text tower makes.

    That head is made once, from the base: it stays as it is, and the text tower with it.
    """
    if spec.library == "timm":
        return build(spec, num_classes=len(splits.class_names))
    names = recipe.class_names or splits.class_names
    if len(names) != len(splits.class_names):
        raise TaskError(f"{len(names)} class names for data of {len(splits.class_names)} classes")
    return ZeroShotClassifier(build(spec), build_tokenizer(spec), class_names=names, templates=recipe.templates)


def _saved(model: torch.nn.Module) -> torch.nn.Module:
    """The part of the model whose weights make the checkpoint."""
    return model.clip if isinstance(model, ZeroShotClassifier) else model


def _write_model(directory: Path, start: Start) -> str:
    """Weights and configuration; returns the content hash of the weights."""
    weights = arrays(_saved(start.model))
    name = "open_clip_model.safetensors" if start.spec.library == "open_clip" else "model.safetensors"
    write_tensors(directory, weights, file_name=name)
    names = start.splits.class_names
    write_config(start.spec, _saved(start.model), directory, class_names=names, settings=start.settings)
    return content_hash(weights, threads=1)


def _notes(start: Start, recipe: Finetune, losses: list[float], *, seconds: float) -> dict[str, Any]:
    return {
        "hyper_parameters": {name: getattr(recipe, name) for name in HYPER_PARAMETERS},
        "data": start.splits.description,
        "images": start.settings.to_json(),
        "loss": losses,
        "seconds": round(seconds, 3),
    }


def _with_new_head(base: Checkpoint, model: torch.nn.Module, report: Report) -> Mapping[str, np.ndarray]:
    """The base's tensors, with the model's own random head where the base's is for another number of classes."""
    own = arrays(model)
    prefixes = _head_prefixes(model)
    head = [name for name in own if name.startswith(prefixes)] if prefixes else []
    if all(name in base and tuple(base.specs[name].shape) == own[name].shape for name in head):
        return base
    old = next((base.specs[name].shape[0] for name in head if name in base), 0)
    report(
        Told(
            f"the base's head has {old} classes, the data {own[head[0]].shape[0]}: the head starts from random weights"
        )
    )
    kept = {name: base[name] for name in base if not name.startswith(prefixes)}
    return kept | {name: own[name] for name in head}


def _head_prefixes(model: torch.nn.Module) -> tuple[str, ...]:
    """timm's names of the classifier layers; none where the model does not say."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))


def _training_data(start: Start) -> TrainingData:
    splits = start.splits
    return TrainingData(splits.train, start.settings, len(splits.class_names), splits.characters)


def _describe_base(base: Checkpoint | None, recipe: Finetune, world: World) -> list[dict[str, Any]]:
    if base is None:
        return []
    return describe_inputs([base], recipe.out, [content_hash(base, threads=world.num_threads)])


def _num_bytes(model: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _show_plan(start: Start, recipe: Finetune, report: Report) -> dict[str, Any]:
    """What --dry-run prints: everything is checked by now, nothing is trained or written."""
    values = {
        "model": f"{start.spec.library}:{start.spec.name}",
        "base": start.base.reference if start.base else "random weights",
        "parameters": sum(parameter.numel() for parameter in _saved(start.model).parameters()),
        "training examples": len(start.splits.train),
        "bytes to write": _num_bytes(_saved(start.model)),
        **{name.replace("_", " "): getattr(recipe, name) for name in HYPER_PARAMETERS},
    }
    report(Table("plan: nothing was trained", ("", ""), tuple(values.items())))
    return {"plan": values}
