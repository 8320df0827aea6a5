"""Alignment by permutations, for every job that offers it: checkpoints in, the same functions with their
units in one order out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from soupkit.align.graph.verify import Verification, verify
from soupkit.align.matching.activations import activations, find_taps, weighed_equally, with_taps
from soupkit.align.matching.match import Match, loaded
from soupkit.align.matching.universe import align_all
from soupkit.align.permuted import Permuted
from soupkit.align.spec import PermutationSpec
from soupkit.asked import Pins, Relates, Restarts, Runs, Seeded, num_batches
from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.source import Source, name_of
from soupkit.checkpoint.views.view import View
from soupkit.errors import AlignError
from soupkit.events import Advanced, Finished, Report, Started, Told
from soupkit.jsons import Json
from soupkit.stages.alignment.examples import example_inputs, permutations_of
from soupkit.stages.inputs.download import download
from soupkit.task.images.models import build, describe, load_weights
from soupkit.task.images.task import open_task
from soupkit.task.spec import ModelSpec
from soupkit.world import World

By = Literal["weights", "activations", "both"]
NUM_CONTROLS = 4
TOLERANCE = 1e-3
"""Relative change of an output, in float32, beyond which a permuted checkpoint is not the same function."""


@dataclass(frozen=True)
class Network:
    """A model that weights can be loaded into, an input for it, and the groups that were shown to keep its
    function."""

    model: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    spec: PermutationSpec
    verification: Verification


@dataclass(frozen=True)
class Aligned:
    """Views of checkpoints, permuted or turned so that they match the one at place `to`, and what a manifest
    records of it."""

    views: Sequence[View]
    to: int
    matches: list[Match]
    notes: Json


def permuted_ingredients(
    checkpoints: Sequence[Source],
    *,
    to: int | None,
    recipe: Runs,
    world: World,
    report: Report,
    by: By = "weights",
) -> Aligned:
    """Match every checkpoint to the one at place `to` (None: the first of two, the medoid of more).

    Each permuted checkpoint is run against the original on one input: AlignError when they differ, and
    nothing that could be written is returned. by: what units are compared by; activations need a recipe with
    data and num_batches (or bn_batches). `seed`, `restarts`, `universe` and `pin` are read where the recipe
    has them. Memory: all models in float32. Raises AlignError, TaskError for a network that cannot be
    followed.
    """
    download(checkpoints, report)
    network = open_network(checkpoints[0], recipe, report)
    spec, models = _tensors(checkpoints, network, recipe, world, report, by=by)
    found = align_all(
        spec,
        models,
        to=to,
        seed=recipe.seed if isinstance(recipe, Seeded) else 0,
        restarts=recipe.restarts if isinstance(recipe, Restarts) else 0,
        universe=recipe.universe if isinstance(recipe, Relates) else "merge-many",
    )
    views: list[View] = []
    for checkpoint, match in zip(checkpoints, found.matches, strict=True):
        view = Permuted(checkpoint, network.spec, match.permutation)
        check_same_function(network, checkpoint, view)
        views.append(view)
        report(Told(f"{checkpoint.reference}: {match.describe()}"))
    notes = {
        "to": checkpoints[found.to].reference,
        "verification": network.verification.to_json(),
        "matches": [match_notes(match) for match in found.matches],
        "spec": json.dumps(network.spec.to_json(), separators=(",", ":")),
    }
    return Aligned(views, found.to, found.matches, notes)


def open_network(checkpoint: Source, recipe: Runs, report: Report) -> Network:
    """Build the model of a checkpoint, derive its groups and check them on its weights; culprits are
    pinned."""
    described = describe(checkpoint, recipe.model)
    model = build(described, num_classes=_num_classes(checkpoint, described))
    load_weights(model, checkpoint)
    inputs = example_inputs(model, described)
    spec = permutations_of(model, inputs, pin=recipe.pin if isinstance(recipe, Pins) else ())
    verification = verify(model, spec, inputs, num_controls=NUM_CONTROLS)
    errors = ", ".join(f"{error:.1e} on {name} weights" for name, error in verification.errors.items())
    report(Told(f"{len(verification.spec.groups)} permutation groups; relative error {errors}"))
    return Network(model, inputs, verification.spec, verification)


def check_same_function(
    network: Network, source: Mapping[str, Array], view: Mapping[str, Array], *, tolerance: float = TOLERANCE
) -> None:
    """Raise AlignError unless both give the same outputs, up to a relative change that rounding may make."""
    outputs = []
    for tensors in (source, view):
        load_weights(network.model, tensors)
        with torch.no_grad():
            outputs.append(
                torch.cat([each.double().flatten() for each in _floating(network.model(*network.inputs))])
            )
    error = float((outputs[1] - outputs[0]).abs().max() / outputs[0].abs().max().clamp_min(1e-300))
    if not error <= tolerance:
        raise AlignError(
            f"{name_of(source, 0)}: moved, its output changes by {error:.1e} of its size",
            hint="please report the model; --pin GROUP leaves a group as it is",
        )


def _tensors(
    checkpoints: Sequence[Source],
    network: Network,
    recipe: Runs,
    world: World,
    report: Report,
    *,
    by: By,
) -> tuple[PermutationSpec, list[dict[str, torch.Tensor]]]:
    """What is matched of every checkpoint: its weights, its activations, or both, with a spec for all of
    it."""
    spec, device = network.spec, world.torch_device()
    weights: list[dict[str, torch.Tensor]] = [{} for _ in checkpoints]
    if by != "activations":
        weights = [loaded(spec, checkpoint, device) for checkpoint in checkpoints]
    if by == "weights":
        return spec, weights
    task = open_task(checkpoints[0], recipe, world)
    taps = find_taps(task.model, spec)
    num_images = recipe.batch_size * num_batches(recipe)
    indices = np.random.default_rng(0).permutation(len(task.train))[:num_images]
    models = []
    report(Started("activations", len(checkpoints), "checkpoints"))
    for checkpoint, own in zip(checkpoints, weights, strict=True):
        task.load(checkpoint)
        batches = task.train.batches(batch_size=recipe.batch_size, indices=indices)
        models.append(weighed_equally(own, activations(task.model, taps, batches, task.outputs)))
        report(Advanced("activations"))
    report(Finished("activations"))
    return with_taps(spec, taps), models


def _num_classes(checkpoint: Source, described: ModelSpec) -> int | None:
    """Classes of a timm model that is only named, as the data would tell: those of the checkpoint's own
    classifier."""
    if described.library != "timm" or described.config or "num_classes" in described.kwargs:
        return None
    with torch.device("meta"):
        classifier = getattr(build(described), "pretrained_cfg", {}).get("classifier")
    name = f"{classifier}.weight" if isinstance(classifier, str) else ""
    return int(checkpoint.slots[name].shape[0]) if name in checkpoint.slots else None


def _floating(result: object) -> Iterable[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result] if result.is_floating_point() else []
    if isinstance(result, dict):
        result = list(result.values())
    return [each for part in result for each in _floating(part)] if isinstance(result, list | tuple) else []


def match_notes(match: Match) -> Json:
    """What a manifest records of one match."""
    return {
        "groups_changed": match.num_changed,
        "groups": len(match.permutation),
        "cosine_before": match.cosine_before,
        "cosine": match.cosine,
        "start": match.start,
    }
