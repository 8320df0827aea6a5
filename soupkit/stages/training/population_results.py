"""What a population is worth: members, their ensemble, their average and greedy soups, on held-out and
test."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.commands import COMMANDS
from soupkit.events import Advanced, Finished, Report, Started, Table, Wrote
from soupkit.jsons import Json, JsonView
from soupkit.manifest import Manifest
from soupkit.recipe.merge import MergeGreedy, MergeUniform
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.population import TrainPopulation
from soupkit.recipe.train import Finetune
from soupkit.report.plots import dot_plot, line_plots
from soupkit.report.tables import score_cell, split_label
from soupkit.stages.training.population_folder import SOUPS, RunFolder
from soupkit.task.images.data import Splits
from soupkit.task.images.metrics import all_scores, ensemble, num_ahead
from soupkit.task.images.task import open_task
from soupkit.task.score import Predictions, scores_to_json, share_error
from soupkit.train.population.regularise import REGULARISATION, member_name
from soupkit.train.population.state import find_state, read_history
from soupkit.world import World

SPLITS = ("held_out", "test")
MEAN = "mean"
ENSEMBLES = {"ensemble-logits": "ensemble of logits", "ensemble-softmax": "ensemble of softmax"}
SHOWN = {MEAN: "members, mean", **ENSEMBLES, "average": "average soup", "greedy": "greedy soup"}
Metrics = dict[str, Json]


def finish_population(
    recipe: TrainPopulation,
    run: RunFolder,
    splits: Splits,
    members: Sequence[Finetune],
    world: World,
    report: Report,
) -> Manifest:
    """Make the soups of the written members, score everything that is written, and write plots and the
    manifest."""
    names = [member_name(number) for number in range(recipe.num_members)]
    _make_soups(recipe, [run.out / name for name in names], world, report)
    metrics = _score(recipe, names, splits, world, report)
    state = find_state(run.state)
    assert state is not None
    history = read_history(state)
    manifest = Manifest(
        command="train-population",
        recipe=recipe_to_json(recipe),
        inputs=[],
        metrics=metrics,
        notes={
            "members": names,
            "soups": list(SOUPS),
            "base": run.base_content,
            "hyper_parameters": {
                name: {"seed": member.seed} | {key: getattr(member, key) for key in REGULARISATION}
                for name, member in zip(names, members, strict=True)
            },
            "data": splits.description,
            "history": vars(history),
        },
    )
    _plot(run.out, manifest)
    manifest.write(run.out)
    show_results(manifest, report)
    report(Wrote(run.out, sum(path.stat().st_size for path in run.out.rglob("*") if path.is_file())))
    return manifest


def show_results(manifest: Manifest, report: Report) -> None:
    """One row per model, per split the accuracy with its standard error; of the members the mean and the
    range."""
    rows = [
        (shown, *(cell for split in SPLITS for cell in _cells(manifest.metrics[name][split]["top1"])))
        for name, shown in SHOWN.items()
    ]
    columns = ("model", "held-out top1", "min … max", "test top1", "min … max")
    sizes = ", ".join(f"{split_label(split)} n = {_size(manifest.metrics, split)}" for split in SPLITS)
    report(Table("population", columns, tuple(rows), f"± is one standard error over examples; {sizes}"))


def _cells(score: JsonView) -> tuple[str, str]:
    spread = f"{score['min']:.4f} … {score['max']:.4f}" if "min" in score else ""
    return score_cell(score), spread


def _size(metrics: JsonView, split: str) -> int:
    size: int = metrics[MEAN][split]["top1"]["num_examples"]
    return size


def _make_soups(recipe: TrainPopulation, members: Sequence[Path], world: World, report: Report) -> None:
    """What `merge uniform` and `merge greedy --accept gt` make of the members."""
    refs = tuple(str(path) for path in members)
    told = _without_tables(report)
    average = _merging(MergeUniform, recipe, refs=refs, out=recipe.out / "average")
    COMMANDS["merge uniform"].run(average, world, told)
    greedy = _merging(MergeGreedy, recipe, refs=refs, out=recipe.out / "greedy")
    COMMANDS["merge greedy"].run(dataclasses.replace(greedy, accept="gt"), world, told)


def _without_tables(report: Report) -> Report:
    """One table at the end says it all."""
    return lambda event: None if isinstance(event, Table) else report(event)


def _merging(kind: type[Any], recipe: TrainPopulation, *, refs: tuple[str, ...], out: Path) -> Any:
    """A merge recipe with this recipe's data, device and batch-norm options."""
    own = {field.name for field in dataclasses.fields(recipe)}
    shared = {
        field.name: getattr(recipe, field.name) for field in dataclasses.fields(kind) if field.name in own
    }
    return kind(
        **(
            shared
            | {"refs": refs, "out": out, "overwrite": True, "dry_run": False, "model": None, "head": None}
        )
    )


def _score(
    recipe: TrainPopulation, names: Sequence[str], splits: Splits, world: World, report: Report
) -> dict[str, Metrics]:
    """{model: {split: {metric: …}}} of the members, their mean and ensembles, and the soups."""
    first = Checkpoint(recipe.out / names[0])
    task = open_task(first, dataclasses.replace(recipe, model=None, head=None), world, splits=splits)
    metrics: dict[str, Metrics] = {name: {} for name in (MEAN, *ENSEMBLES, *SOUPS, *names)}
    found: dict[str, list[Predictions]] = {split: [] for split in SPLITS}
    report(Started("scoring", len(names) + len(SOUPS), "models"))
    for name in (*names, *SOUPS):
        task.load(Checkpoint(recipe.out / name))
        for split, examples in zip(SPLITS, (task.held_out, task.test), strict=True):
            predictions = task.predict(examples)
            metrics[name][split] = scores_to_json(all_scores(predictions))
            found[split] += [predictions] if name not in SOUPS else []
        report(Advanced("scoring", note=name))
    report(Finished("scoring"))
    for split, predicted in found.items():
        metrics["ensemble-logits"][split] = scores_to_json(all_scores(ensemble(predicted, "logits")))
        metrics["ensemble-softmax"][split] = scores_to_json(all_scores(ensemble(predicted, "softmax")))
        metrics[MEAN][split] = {"top1": mean_accuracy(predicted)}
    return metrics


def mean_accuracy(predictions: Sequence[Predictions]) -> Json:
    """The mean accuracy of several models on the same examples, its standard error over examples, and the
    range.

    Models err on the same examples, so the error is that of the mean over examples of the share of models
    that are right: `share_error` of var_i(share_i).
    """
    right = np.stack([num_ahead(each.outputs, each.targets) < 1 for each in predictions])
    shares, each_value = right.mean(0), right.mean(1)
    num = len(shares)
    error = share_error(float(shares.var()), num)
    extremes = {"min": float(each_value.min()), "max": float(each_value.max())}
    return {"value": float(shares.mean()), "standard_error": error, "num_examples": num, **extremes}


def _plot(out: Path, manifest: Manifest) -> None:
    """scores.png: every row of the table; similarity.png: cosine and distance of the members over updates."""
    members = [manifest.metrics[name]["test"]["top1"]["value"] for name in manifest.notes["members"]]
    rows = {
        shown: {
            split_label(split): (score["value"], score["standard_error"])
            for split, score in ((split, manifest.metrics[name][split]["top1"]) for split in SPLITS)
        }
        for name, shown in SHOWN.items()
    }
    dot_plot(out / "scores.png", rows, title=out.name, xlabel="top-1", faint={SHOWN[MEAN]: members})
    points = manifest.notes["history"]["similarity"]
    updates = [point["update"] for point in points]
    curves = {
        "mean cosine of two members": [point["cosine"] for point in points],
        "mean distance of two members": [point["distance"] for point in points],
    }
    line_plots(out / "similarity.png", updates, curves, xlabel="update")
