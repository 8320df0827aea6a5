"""`fge`: an ensemble collected within one training run by a cyclical learning rate."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.curve.descent import Descent
from soupkit.curve.schedule import Cycles
from soupkit.events import Cell, Report, Scored, Table, Told, Wrote
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.recipe.curve import Fge, as_finetune
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.train import Finetune
from soupkit.report.curves import cycle_plot
from soupkit.report.tables import score_cell, split_label, tell_plan
from soupkit.stages.outputs.described import describe_inputs, describe_outputs
from soupkit.stages.training.start import Start, model_bytes, prepare, write_model
from soupkit.task.epochs import num_batches
from soupkit.task.images.ensembles import KINDS, RunningEnsemble
from soupkit.task.randomness import Stream, seeded, torch_threads
from soupkit.task.score import Predictions, scores_of, scores_to_json
from soupkit.task.task import Batch, Trainee
from soupkit.train.loop import precision
from soupkit.train.optimize import build_optimizer
from soupkit.world import World

COMMAND = "fge"
SPLITS = ("held_out", "test")


def fge(recipe: Fge, world: World, report: Report) -> Json:
    """Train on through the cycles, write a checkpoint in each, score their ensemble as it grows; returns the
    manifest.

    Raises TaskError, RecipeError or OutputError before training for whatever can be known then.
    """
    with torch_threads(world.num_threads):
        training = as_finetune(recipe, base=recipe.base, lr=recipe.lr_1)
        start = prepare(training, world, report)
        assert start.base is not None
        start.task.load(start.base)  # strictly: members of an ensemble share its head
        per_epoch = num_batches(len(start.task.train), training.batch_size)
        cycles = Cycles(recipe.schedule, recipe.lr_1, recipe.lr_2, recipe.cycle * per_epoch)
        kept = [done for done in range(1, recipe.epochs * per_epoch + 1) if cycles.keeps(done)]
        num_bytes = model_bytes(start.task.saved) * len(kept)
        output = OutputDirectory(
            recipe.out, overwrite=recipe.overwrite, num_bytes=num_bytes, inputs=start.base.files
        )
        if recipe.dry_run:
            return _show_plan(start.task, recipe, kept, per_epoch, report)
        with output as directory:
            run = _CyclicalTraining(recipe, training, start, cycles, per_epoch, directory, world, report)
            run.train()
            manifest = run.write()
    report(run.table())
    report(
        Told(
            f"its members make soups and ensembles: soupkit merge greedy {recipe.out} --data {recipe.data} …"
        )
    )
    report(Wrote(recipe.out, num_bytes))
    return manifest.to_json()


@dataclass
class _CyclicalTraining:
    """One run: what it keeps and what it finds out, epoch by epoch."""

    recipe: Fge
    training: Finetune
    start: Start
    cycles: Cycles
    per_epoch: int
    directory: Path
    world: World
    report: Report
    members: list[str] = field(default_factory=list)
    outputs: Json = field(default_factory=dict)
    steps: list[Json] = field(default_factory=list)
    trace: list[Json] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        start = self.start
        assert start.base is not None
        self.base, self.content = start.base, content_hash(start.base, threads=self.world.num_threads)
        self.task = start.task
        self.examples = {"held_out": self.task.held_out, "test": self.task.test}
        self.ensembles = {split: RunningEnsemble() for split in SPLITS}
        self.origin = [parameter.detach().clone() for parameter in start.task.model.parameters()]

    def train(self) -> None:
        """All epochs; members are written as they come."""
        began = time.perf_counter()
        model, recipe = self.task.model, self.recipe
        self._look(0)
        model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]

        def gradient(_: object, batch: Batch) -> Tensor:
            with precision(self.training, self.task.device):
                loss = self.task.loss(batch) / len(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        optimizer = build_optimizer(model, self.training)
        descent = Descent(
            gradient, optimizer, self.cycles.rate, self.per_epoch, recipe.epochs, recipe.clip_grad
        )
        with seeded(recipe.seed, Stream.FORWARD, device=self.task.device):
            descent.run(self.task.training(self.training), self.report, after=self._after)
        self.losses, self.seconds = descent.losses, time.perf_counter() - began

    def _after(self, num_done: int) -> None:
        """Look at the model at the end of an epoch and where it is kept."""
        if num_done % self.per_epoch and not self.cycles.keeps(num_done):
            return
        model = self.task.model
        model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        predictions = self._look(num_done)
        if self.cycles.keeps(num_done):
            self._keep(num_done, predictions)
        model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]

    def _look(self, num_done: int) -> dict[str, Predictions]:
        """Predict and note error and distance from the start; these are for the figure and choose nothing."""
        predictions = {split: self.task.predict(self.examples[split]) for split in SPLITS}
        top1 = self.task.metrics["top1"]
        errors = {split: 1 - top1.of(p.outputs, p.targets).value for split, p in predictions.items()}
        self.trace.append({"epoch": num_done / self.per_epoch, "error": errors, "distance": self._distance()})
        return predictions

    def _scores(self, predictions: Predictions) -> Json:
        return scores_to_json(scores_of(predictions, self.task.metrics))

    def _distance(self) -> float:
        pairs = zip(self.task.model.parameters(), self.origin, strict=True)
        return math.sqrt(sum(float((a.detach() - b).double().square().sum()) for a, b in pairs))

    def _keep(self, num_done: int, predictions: dict[str, Predictions]) -> None:
        """Write a member, take it into the ensemble, and score both."""
        name = f"snapshot-{len(self.members):03d}"
        folder = self.directory / name
        folder.mkdir()
        content = write_model(folder, self.task)
        single = {split: self._scores(p) for split, p in predictions.items()}
        step: Json = {"member": name, "epoch": num_done / self.per_epoch, "single": single}
        for split, each in predictions.items():
            self.ensembles[split].add(each)
        for kind in KINDS:
            step[kind] = {split: self._scores(self.ensembles[split].predictions(kind)) for split in SPLITS}
        self.members.append(name)
        self.steps.append(step)
        self.outputs[name] = describe_outputs(folder, content)
        notes = {"epoch": step["epoch"], "data": self.task.splits.description}
        self._manifest(self.recipe.out / name, self.outputs[name], single, notes).write(folder)
        for split in SPLITS:
            score = step["softmax"][split]["top1"]
            numbers = (score["value"], score["standard_error"], score["num_examples"])
            self.report(Scored(f"ensemble of {len(self.members)}", "top1", *numbers, split_label(split)))

    def write(self) -> Manifest:
        """The figure and the manifest over the members."""
        self._plot()
        last = self.steps[-1]
        notes = {
            "members": self.members,
            "growth": self.steps,
            **self.task.notes,
            "loss": self.losses,
            "epochs": self.trace,
            "seconds": round(self.seconds, 3),
        }
        files = {"files": {"fge.png": {"bytes": (self.directory / "fge.png").stat().st_size}}}
        metrics = {name: last[name] for name in ("single", *KINDS)}
        manifest = self._manifest(self.recipe.out, self.outputs | files, metrics, notes)
        manifest.write(self.directory)
        return manifest

    def _manifest(self, out: Path, outputs: Json, metrics: Json, notes: Json) -> Manifest:
        inputs = describe_inputs([self.base], out, [self.content])
        options = recipe_to_json(self.recipe)
        return Manifest(
            command=COMMAND, recipe=options, inputs=inputs, outputs=outputs, metrics=metrics, notes=notes
        )

    def _plot(self) -> None:
        updates = np.arange(self.recipe.epochs * self.per_epoch)
        rates = np.array([self.cycles.rate(int(update)) for update in updates])
        epochs = np.array([look["epoch"] for look in self.trace])
        errors = {split: 100 * np.array([look["error"][split] for look in self.trace]) for split in SPLITS}
        cycle_plot(
            self.directory / "fge.png",
            (updates / self.per_epoch, rates),
            {split: (epochs, values) for split, values in errors.items()},
            (epochs, np.array([look["distance"] for look in self.trace])),
            kept=[step["epoch"] for step in self.steps],
            title=f"{self.recipe.schedule}: {len(self.members)} members in {self.recipe.epochs} epochs",
        )

    def table(self) -> Table:
        """How the ensemble grows, on held-out and test."""
        rows: list[tuple[Cell, ...]] = []
        for number, step in enumerate(self.steps, start=1):
            for split in SPLITS:
                cells = tuple(score_cell(step[name][split]["top1"]) for name in ("single", *KINDS))
                num = step["single"][split]["top1"]["num_examples"]
                rows.append((number, step["epoch"], split_label(split), *cells, num))
        columns = (
            "members",
            "epoch",
            "split",
            "newest alone",
            "ensemble of logits",
            "ensemble of softmax",
            "n",
        )
        return Table(f"{self.recipe.schedule}: top-1", columns, tuple(rows), "± is one standard error")


def _show_plan(task: Trainee, recipe: Fge, kept: list[int], per_epoch: int, report: Report) -> Json:
    """What --dry-run prints: everything is checked by now, nothing is trained or written."""
    values: dict[str, Cell] = {
        "model": task.name,
        "base": recipe.base,
        "schedule": recipe.schedule,
        "training examples": len(task.train),
        "updates": recipe.epochs * per_epoch,
        "members": len(kept),
        "after epochs": ", ".join(f"{done / per_epoch:g}" for done in kept),
    }
    return tell_plan(values, report, nothing="was trained")
