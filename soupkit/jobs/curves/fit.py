"""`curve fit` and `curve point`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.reference import open_references
from soupkit.checkpoint.source import Source
from soupkit.checkpoint.tensors import write_tensors
from soupkit.curve.bends import Bends, CurvePoint, Weights
from soupkit.curve.curve import Curve
from soupkit.curve.descent import Descent, Gradient, Place
from soupkit.curve.schedule import curve_rate
from soupkit.curve.state import load_state, save_state
from soupkit.errors import CompatibilityError, RecipeError
from soupkit.events import Cell, Report, Told, Wrote
from soupkit.given import given_by
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.recipe.curve import CurveFit, as_finetune
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.train import Finetune
from soupkit.report.tables import tell_plan
from soupkit.stages.alignment.permute import permuted_ingredients
from soupkit.stages.inputs.agreed import agreed
from soupkit.stages.inputs.download import download
from soupkit.stages.inputs.ordered import say_order
from soupkit.stages.inputs.seen import check_seen
from soupkit.stages.outputs.described import describe_inputs, describe_outputs
from soupkit.stages.scoring.scoring import refresh_statistics
from soupkit.stages.training.start import model_bytes, prepare, write_model
from soupkit.task.epochs import num_batches
from soupkit.task.randomness import Stream, seeded, torch_threads
from soupkit.task.task import Batch, Task, Trainee
from soupkit.train.loop import precision
from soupkit.train.optimize import build_optimizer
from soupkit.world import World

COMMAND = "curve fit"
WITHOUT_EFFECT = (
    *("refs", "out", "overwrite", "dry_run", "download", "workers", "device", "threads"),
    *("save_every", "resume", "strict_data"),
)
"""Options that do not shape the bends; the ends count by their content."""
POINTS_STREAM = 0x637572  # the sampled points have a stream of their own


@dataclass(frozen=True)
class _Fit:
    """A fit that is opened and checked, and has trained nothing yet."""

    recipe: CurveFit
    training: Finetune
    ends: Sequence[Source]
    task: Trainee
    alignment: Json | None

    @property
    def curve(self) -> Curve:
        return Curve(self.recipe.kind, self.recipe.num_bends)


def curve_fit(recipe: CurveFit, world: World, report: Report) -> Json:
    """Train the bends and write them; returns the manifest, whose notes hold the curve.

    Raises RecipeError, TaskError, CompatibilityError and OutputError before training for whatever can be
    known then.
    """
    began = time.perf_counter()
    with torch_threads(world.num_threads):
        fit = _open(recipe, world, report)
        num_bytes = model_bytes(fit.task.saved) * recipe.num_bends
        inputs = [file for end in fit.ends for file in end.files]
        output = OutputDirectory(recipe.out, overwrite=recipe.overwrite, num_bytes=num_bytes, inputs=inputs)
        if recipe.dry_run:
            return _show_plan(fit, num_bytes, report)
        contents = [content_hash(end, threads=world.num_threads) for end in fit.ends]
        state = state_path(recipe.out)
        bends, losses = _train(fit, state, contents, report)
        with output as directory:
            manifest = _write(directory, fit, bends, contents, losses, seconds=time.perf_counter() - began)
    state.unlink(missing_ok=True)  # only now: a fit that is killed while it writes continues from it
    report(Told(f"any point is a mixture of its bends: soupkit curve point {recipe.out} --at 0.5 --out …"))
    report(Wrote(recipe.out, num_bytes))
    return manifest.to_json()


def _open(recipe: CurveFit, world: World, report: Report) -> _Fit:
    """Open both ends and the data, build the model; whatever does not fit together is refused here."""
    ends: Sequence[Source] = open_references(recipe.refs)
    say_order(recipe.refs, report)
    if len(ends) != 2:
        raise RecipeError(
            f"refs name {len(ends)} checkpoints, expected two: the start and the end of the curve"
        )
    agreed(ends, recipe, report)
    download(ends, report)
    training = as_finetune(recipe, base=ends[0].reference)
    task = prepare(training, world, report).task
    check_seen(ends[1:], task.splits, recipe, report, selects=False)
    _check_heads(task, ends)
    task.load(ends[0])  # strictly: a curve cannot begin with a new head
    alignment = None
    if recipe.align:
        aligned = permuted_ingredients(ends, to=0, recipe=recipe, world=world, report=report)
        ends, alignment = aligned.views, aligned.notes
    return _Fit(recipe, training, ends, task, alignment)


def _check_heads(task: Task, ends: Sequence[Source]) -> None:
    """A CLIP model's head is made once: the text tower that makes it must be that of both ends."""
    makers = task.head.makers() if task.head else set()
    for name in sorted(makers & ends[0].keys() & ends[1].keys()):
        if not np.array_equal(ends[0][name], ends[1][name]):
            raise CompatibilityError(
                f"{ends[0].reference}, {ends[1].reference}: {name} of the text tower differs: a curve "
                f"keeps one head",
                hint="take models whose text tower rested while they were trained, as in soupkit finetune",
            )


def state_path(out: Path) -> Path:
    """Where the state of an unfinished fit lies: beside its output."""
    return out.absolute().with_name(f".{out.name}.curve-state")


def _train(fit: _Fit, state: Path, contents: Sequence[str], report: Report) -> tuple[Bends, list[float]]:
    """Fit the bends by stochastic descent, one random point per update: min E_t[L(w(t))], t ~ U(0, 1).

    Garipov et al. 2018 (arXiv:1802.10026, §3.1, eq. 2).
    """
    recipe, task = fit.recipe, fit.task
    model = task.model
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    bends = _bends(fit)
    per_epoch = num_batches(len(fit.task.train), fit.training.batch_size)
    # The penalty is that of the sampled point, and comes with its gradient; the optimizer would shrink bends.
    optimizer = build_optimizer(bends, dataclasses.replace(fit.training, weight_decay=0.0))
    rate = curve_rate(recipe.lr, per_epoch * recipe.epochs)
    descent = Descent(
        _gradient(fit, task, bends), optimizer, rate, per_epoch, recipe.epochs, recipe.clip_grad
    )
    about = _about(recipe, contents)

    def save(num_done: int) -> None:
        if recipe.save_every and num_done % (recipe.save_every * per_epoch) == 0:
            save_state(state, descent, bends, model, about=about)

    state.parent.mkdir(parents=True, exist_ok=True)
    with seeded(recipe.seed, Stream.FORWARD, device=fit.task.device):
        if recipe.resume and load_state(state, descent, bends, model, about=about):
            report(Told(f"continues after epoch {len(descent.losses)} of {recipe.epochs}"))
        descent.run(task.training(fit.training, first=descent.num_done), report, after=save)
    return bends, descent.losses


def _gradient(fit: _Fit, task: Task, bends: Bends) -> Gradient:
    """The gradient of every bend at one random point, which depends on the seed and the place of the batch
    alone."""
    recipe, point_of = fit.recipe, CurvePoint(task, bends)

    def gradient(place: Place, batch: Batch) -> Tensor:
        t = float(np.random.default_rng([recipe.seed, POINTS_STREAM, place.epoch, place.number]).random())
        point = point_of.at(t)
        with precision(fit.training, fit.task.device):
            loss = point_of(point, batch) / len(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        bends.take_gradient(t, point, weight_decay=recipe.weight_decay)
        return loss.detach()

    return gradient


def _about(recipe: CurveFit, contents: Sequence[str]) -> Json:
    """What two fits have in common of which one continues the other: the options that shape weights, and the
    ends."""
    wanted = {key: value for key, value in recipe_to_json(recipe).items() if key not in WITHOUT_EFFECT}
    given = given_by({"data": recipe.data, "data_dir": recipe.data_dir})
    return {"recipe": wanted, "ends": list(contents), "data": given.get("data")}


def _bends(fit: _Fit) -> Bends:
    """The bends on the straight line between the ends, in the model's memory format."""
    task = fit.task

    def weights_of(checkpoint: Source) -> Weights:
        task.load(checkpoint)
        return [
            parameter.detach().clone().requires_grad_(parameter.requires_grad)
            for parameter in task.model.parameters()
        ]

    # The start comes last, since its buffers stay in the model.
    last, first = weights_of(fit.ends[1]), weights_of(fit.ends[0])
    bends = Bends(first, last, fit.curve, fix_start=fit.recipe.fix_start, fix_end=fit.recipe.fix_end)
    return bends.to(fit.task.device)


def _write(
    directory: Path,
    fit: _Fit,
    bends: Bends,
    contents: Sequence[str],
    losses: Sequence[float],
    *,
    seconds: float,
) -> Manifest:
    """Every bend as a checkpoint with a manifest of its own, and the curve's manifest over them."""
    recipe, names = fit.recipe, [f"bend-{j}" for j in range(fit.curve.num_bends)]
    outputs = {}
    for bend, name in enumerate(names):
        (directory / name).mkdir()
        content = _write_bend(directory / name, fit, bends, bend)
        outputs[name] = describe_outputs(directory / name, content)
        values: Json = {"outputs": outputs[name]}
        if bends.trained[bend]:
            values["notes"] = {"data": fit.task.notes["data"]}
        _manifest(recipe, fit, contents, recipe.out / name, values).write(directory / name)
    notes = {
        "curve": fit.curve.to_json(),
        "bends": names,
        "members": names,
        **fit.task.notes,
        "loss": list(losses),
        "seconds": round(seconds, 3),
        **({"alignment": fit.alignment} if fit.alignment else {}),
    }
    manifest = _manifest(recipe, fit, contents, recipe.out, {"outputs": outputs, "notes": notes})
    manifest.write(directory)
    return manifest


def _manifest(recipe: CurveFit, fit: _Fit, contents: Sequence[str], out: Path, values: Json) -> Manifest:
    inputs = describe_inputs(fit.ends, out, contents)
    return Manifest(command=COMMAND, recipe=recipe_to_json(recipe), inputs=inputs, **values)


def _write_bend(directory: Path, fit: _Fit, bends: Bends, bend: int) -> str:
    """A fixed end bit for bit as it came; a trained bend with batch-norm statistics of its own."""
    model, task = fit.task.model, fit.task
    if not bends.trained[bend]:
        end = fit.ends[0 if bend == 0 else -1]
        tensors = {name: end[name] for name in task.tensors()}
        write_tensors(directory, tensors, file_name=task.file_name)
        task.write_config(directory)
        return content_hash(tensors, threads=1)
    bends.write_into(model, bend)
    # Training left the statistics of all points together, and in a layout that changes the last bits.
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    refresh_statistics(task, fit.training, num_batches=fit.recipe.bn_batches)
    return write_model(directory, task)


def _show_plan(fit: _Fit, num_bytes: int, report: Report) -> Json:
    """What --dry-run prints: everything is checked by now, nothing is trained or written."""
    recipe = fit.recipe
    values: dict[str, Cell] = {
        "model": fit.task.name,
        "from": fit.ends[0].reference,
        "to": fit.ends[1].reference,
        "curve": f"{recipe.kind} of {recipe.num_bends} bends",
        "parameters": sum(parameter.numel() for parameter in fit.task.model.parameters()),
        "training examples": len(fit.task.train),
        "updates": recipe.epochs * num_batches(len(fit.task.train), fit.training.batch_size),
        "bytes to write": num_bytes,
    }
    return tell_plan(values, report, nothing="was trained")
