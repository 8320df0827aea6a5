"""`export`: a CLIP classifier → what timm, open_clip or the published code loads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import soupkit.task.torchvision_ops  # noqa: F401  (before timm and open_clip)
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.classifier import HEAD
from soupkit.checkpoint.config.companions import copy_files
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.checkpoint.tensors import write_tensors
from soupkit.errors import TaskError
from soupkit.events import Report, Told, Wrote
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.recipe.hub import Export
from soupkit.recipe.parse import recipe_to_json
from soupkit.report.tables import tell_plan
from soupkit.stages.outputs.described import describe_inputs, describe_outputs
from soupkit.task.classifier import Classifier
from soupkit.task.images.as_timm import as_timm
from soupkit.task.images.classifier import ClipClassifier
from soupkit.task.images.heads import without_head
from soupkit.task.images.models import build, write_config
from soupkit.task.spec import ModelSpec, describe
from soupkit.task.weights import arrays, load_weights, to_torch
from soupkit.world import World

COMMAND = "export"
PICKLE = "model.pt"
Tensors = dict[str, np.ndarray]
Write = Callable[[Path], None]


@dataclass(frozen=True)
class _Opened:
    """A classifier, its model with its weights, and the checkpoints that tensors are taken from, its own
    first."""

    spec: ModelSpec
    model: ClipClassifier
    sources: list[Checkpoint]


def export(recipe: Export, world: World, report: Report) -> Json:
    """Open, convert, prove by a strict load and, for timm, by running both, then write; returns the manifest.

    Memory: two models. Raises TaskError where the form cannot hold what the classifier computes.
    """
    own = open_checkpoint(recipe.ref)
    spec = describe(own, None)
    form = Classifier.of(spec.config)
    if form is None:
        raise TaskError(
            f"{own.reference}: has no learned head of CLIP to export",
            hint="timm, open_clip and transformers load other checkpoints as they are",
        )
    model = build(spec)
    assert isinstance(model, ClipClassifier)
    load_weights(model, own)
    sources = [own, *([open_checkpoint(recipe.text_tower)] if recipe.text_tower else [])]
    tensors, write = {"timm": _timm, "open-clip": _open_clip, "state-dict": _state_dict}[recipe.to](
        _Opened(spec, model, sources)
    )
    size = sum(values.nbytes for values in tensors.values())
    if recipe.dry_run:
        plan: Json = {"form": recipe.to, "tensors": len(tensors), "bytes to write": size}
        return tell_plan(plan, report, nothing="was written")
    files = [file for source in sources for file in source.files]
    with OutputDirectory(recipe.out, overwrite=recipe.overwrite, num_bytes=size, inputs=files) as directory:
        write(directory)
        contents = [content_hash(source, threads=world.num_threads) for source in sources]
        manifest = Manifest(
            command=COMMAND,
            recipe=recipe_to_json(recipe),
            inputs=describe_inputs(sources, recipe.out, contents),
            outputs=describe_outputs(directory, content_hash(tensors, threads=1)),
        )
        manifest.write(directory)
    if recipe.to == "open-clip":
        report(Told("the head is left out: a CLIP model of open_clip has no place for it"))
    report(Wrote(recipe.out, size))
    return manifest.to_json()


def _timm(opened: _Opened) -> tuple[Tensors, Write]:
    built, configure = as_timm(opened.spec, opened.model)
    tensors = arrays(built)

    def write(directory: Path) -> None:
        write_tensors(directory, tensors)
        configure(directory)

    return tensors, write


def _state_dict(opened: _Opened) -> tuple[Tensors, Write]:
    """Bit for bit what lies there, in the order in which a model saves it."""
    names = {name: name if name.startswith(HEAD) else f"model.{name}" for name in opened.model.state_dict()}
    tensors = {names[name]: opened.sources[0][name] for name in names}

    def write(directory: Path) -> None:
        torch.save(OrderedDict((n, to_torch(array)) for n, array in tensors.items()), directory / PICKLE)

    return tensors, write


def _open_clip(opened: _Opened) -> tuple[Tensors, Write]:
    """The tower in a whole CLIP model; what this checkpoint lacks of it comes from another."""
    plain = without_head(opened.spec)
    clip = build(plain)
    first, others = opened.sources[0], opened.sources[1:]
    own = {name: first[name] for name in first if not name.startswith(HEAD)}
    rest = {name: source[name] for source in others for name in clip.state_dict() if name in source}
    tensors = rest | own
    lacking = [name for name in clip.state_dict() if name not in tensors]
    if lacking:
        raise TaskError(
            f"{first.reference}: lacks {len(lacking)} tensors of the text tower: {lacking[0]}, …",
            hint="--text-tower REF takes them from the checkpoint that the tower was started from",
        )
    load_weights(clip, tensors)

    def write(directory: Path) -> None:
        tokenizer = [path for path in opened.sources[-1].companions if not path.name.endswith("config.json")]
        copy_files(tokenizer, opened.sources[-1].files[0].parent, directory)
        write_tensors(directory, tensors, file_name="open_clip_model.safetensors")
        write_config(plain, clip, directory)

    return tensors, write
