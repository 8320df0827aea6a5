"""`align groups`: what may be permuted in a network, and the proof."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from soupkit.align.graph.expression import AxisExpr, names_in
from soupkit.align.graph.verify import Verification, verify
from soupkit.align.spec import PermutationSpec
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.errors import AlignError
from soupkit.events import Finished, Report, Started, Table, Told, Warned
from soupkit.jsons import Json
from soupkit.recipe.align_groups import AlignGroups
from soupkit.stages.alignment.examples import example_inputs, permutations_of
from soupkit.task.images.models import ModelSpec, build, describe, load_weights, parse_model
from soupkit.world import World


def align_groups(recipe: AlignGroups, world: World, report: Report) -> Json:
    """Derive or read the groups of a model, prove them, print them; returns the spec and what was checked.

    Raises TaskError for a model that cannot be built, AlignError for one that cannot be followed.
    """
    torch.set_num_threads(world.num_threads)
    torch.manual_seed(recipe.seed)
    model, described = open_model(recipe)
    inputs = example_inputs(model, described)
    report(Started("following the graph"))
    spec = _read(recipe.groups, model) if recipe.groups else permutations_of(model, inputs)
    report(Finished("following the graph"))
    spec = spec.pin(recipe.pin) if recipe.pin else spec
    checked = _verified(model, spec, inputs, recipe, report) if recipe.verify else None
    spec = checked.spec if checked else spec
    _show(spec, model, recipe, report)
    if checked:
        report(Told(verdict(checked)))
    return {
        "model": described.to_json(),
        "share": share_of_parameters(spec, model),
        "verification": checked.to_json() if checked else None,
        "spec": spec.to_json(),
    }


def open_model(recipe: AlignGroups) -> tuple[torch.nn.Module, ModelSpec]:
    """The model by name with random weights, or a checkpoint's with its own."""
    if recipe.name.startswith(("timm:", "open_clip:")):
        described = parse_model(recipe.name)
        return build(described), described
    checkpoint = open_checkpoint(recipe.name)
    described = describe(checkpoint, recipe.model)
    model = build(described)
    checkpoint.fetch()
    load_weights(model, checkpoint)
    return model, described


def share_of_parameters(spec: PermutationSpec, model: torch.nn.Module) -> float:
    """The share of a model's parameters that lie in tensors with a free axis."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    free = sum(size for name, size in sizes.items() if any(map(names_in, spec.axes.get(name, ()))))
    return free / max(sum(sizes.values()), 1)


def verdict(checked: Verification) -> str:
    """What the proof found, in one line."""
    errors = ", ".join(f"{error:.1e} on {name} weights" for name, error in checked.errors.items())
    return (
        f"all groups permuted at random: relative error {errors} ({checked.dtype}, allowed "
        f"{checked.tolerance:g})"
    )


def _read(path: Path, model: torch.nn.Module) -> PermutationSpec:
    """An exported spec, or the whole output of `--json`. Raises AlignError where it is not this model's."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AlignError(f"{path}: cannot be read: {error}", hint="export groups with --json") from error
    spec = PermutationSpec.from_json(values.get("spec", values) if isinstance(values, dict) else values)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, axes in spec.axes.items():
        found = tuple(axis.size for axis in axes)
        if shapes.get(name) != found:
            raise AlignError(
                f"{path}: {name} has shape {list(found)}, in the network {list(shapes.get(name, ()))}"
            )
    return spec


def _verified(
    model: torch.nn.Module,
    spec: PermutationSpec,
    inputs: tuple[torch.Tensor, ...],
    recipe: AlignGroups,
    report: Report,
) -> Verification:
    report(Started("running the network to prove the groups"))
    checked = verify(model, spec, inputs, seed=recipe.seed, num_controls=recipe.controls)
    report(Finished("running the network to prove the groups"))
    for family in checked.culprits:
        report(Warned(f"{family} was pinned: the function check failed with it; please report this network"))
    for name in checked.unobservable:
        report(Told(f"unobservable: {name} does not change the outputs"))
    return checked


def _show(spec: PermutationSpec, model: torch.nn.Module, recipe: AlignGroups, report: Report) -> None:
    rows = [_family_row(spec, family, groups) for family, groups in spec.families().items()]
    share = share_of_parameters(spec, model)
    report(Table("groups", ("group", "kind", "number", "units", "axes", "for example"), tuple(rows)))
    if recipe.tensors:
        cells = tuple(cell for name in spec.axes for cell in _tensor_rows(spec, name))
        report(Table("axes", ("tensor", "axis", "size", "free", "pinned"), cells))
    else:
        report(Table("pinned axes", ("reason", "axes", "for example"), _reasons(spec)))
    report(Told(f"{len(spec.groups)} groups; {share:.1%} of the parameters lie in tensors with a free axis"))


def _family_row(spec: PermutationSpec, family: str, groups: list[str]) -> tuple[str, str, int, int, int, str]:
    first = spec.groups[groups[0]]
    attached = spec.attached(first.name)
    others = [
        f"{tensor}:{axis}" for tensor, axis in attached if not first.name.startswith(f"{tensor}:{axis}")
    ]
    kind = f"{first.kind} inside {first.inside[0]}" if first.inside else first.kind
    return family, kind, len(groups), first.size, len(attached), ", ".join(others[:2])


def _reasons(spec: PermutationSpec) -> tuple[tuple[str, int, str], ...]:
    counts = Counter(entry.reason for entry in spec.pinned)
    first = {entry.reason: f"{entry.tensor}:{entry.axis}" for entry in reversed(spec.pinned)}
    return tuple((reason, number, first[reason]) for reason, number in counts.most_common())


def _tensor_rows(spec: PermutationSpec, name: str) -> Iterable[tuple[str, int, int, str, str]]:
    for number, axis in enumerate(spec.axes[name]):
        reasons = [entry.reason for entry in spec.pinned if (entry.tensor, entry.axis) == (name, number)]
        yield name, number, axis.size, _families(spec, axis), "; ".join(reasons)


def _families(spec: PermutationSpec, axis: AxisExpr) -> str:
    found = (spec.groups[name].family or name for name in names_in(axis))
    return " × ".join(dict.fromkeys(found))
