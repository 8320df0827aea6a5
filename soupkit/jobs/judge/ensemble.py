"""`ensemble`: the average prediction of checkpoints, each of which is run once and remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.quantized import refuse_quantized
from soupkit.checkpoint.reference import open_references
from soupkit.events import Advanced, Cell, Finished, Report, Started, Table, Told, Wrote
from soupkit.jsons import Json, JsonView
from soupkit.manifest import Manifest
from soupkit.merge.mixture import uniform
from soupkit.recipe.curve import Ensemble
from soupkit.recipe.parse import recipe_to_json
from soupkit.remembered import Remembered
from soupkit.report.tables import score_cell, split_label
from soupkit.stages.inputs.agreed import check_alike
from soupkit.stages.inputs.seen import check_seen
from soupkit.stages.outputs.described import describe_inputs
from soupkit.stages.outputs.findings import write_findings, write_scores
from soupkit.stages.scoring.scoring import JUDGED, contents_of, predict
from soupkit.task.images.ensembles import KINDS, RunningEnsemble
from soupkit.task.images.models import describe
from soupkit.task.images.task import ImageTask, open_task
from soupkit.task.score import Comparison, Predictions, compare, scores_of, scores_to_json
from soupkit.world import World

BEST = "best single"


def ensemble(recipe: Ensemble, world: World, report: Report) -> Json:
    """Score every checkpoint and the ensembles of logits and of probabilities; returns the manifest.

    The best single model is the one that is best on held-out; the ensembles are compared with it in pairs.
    Memory: the predictions of four models. Raises RecipeError and TaskError before anything is scored for
    whatever can be known.
    """
    checkpoints = open_references(recipe.refs)
    refuse_quantized(checkpoints)
    check_alike(checkpoints, recipe, report)
    inputs = [file for checkpoint in checkpoints for file in checkpoint.files]
    output = OutputDirectory(recipe.out, overwrite=recipe.overwrite, inputs=inputs) if recipe.out else None
    task = open_task(checkpoints[0], recipe, world)
    check_seen(checkpoints, task.splits, recipe, report)
    contents = contents_of(checkpoints, world, report)
    singles, best, ensembles = _predict(checkpoints, contents, task, recipe, world, report)
    names = [checkpoint.reference for checkpoint in checkpoints]
    scored = {str(kind): {split: ensembles[split].predictions(kind) for split in JUDGED} for kind in KINDS}
    metrics: Json = {
        "best_single": singles[best[0]],
        **{
            kind: {split: scores_to_json(scores_of(p, task.metrics)) for split, p in each.items()}
            for kind, each in scored.items()
        },
    }
    comparisons: dict[str, dict[str, Comparison]] = {
        kind: {split: compare(each[split], best[1][split], task.metrics["top1"]) for split in JUDGED}
        for kind, each in scored.items()
    }
    report(_table(names[best[0]], metrics, comparisons, len(names)))
    manifest = Manifest(
        command="ensemble",
        recipe=recipe_to_json(recipe),
        inputs=[{"reference": name} for name in names],
        metrics=metrics,
        notes={
            "best_single": names[best[0]],
            "singles": dict(zip(names, singles, strict=True)),
            "comparisons": {
                kind: {s: c.to_json() for s, c in each.items()} for kind, each in comparisons.items()
            },
            "data": task.splits.description,
        },
    )
    if output is not None:
        manifest = _write(output, manifest, checkpoints, contents)
        report(Wrote(output.out, sum(entry["bytes"] for entry in manifest.outputs["files"].values())))
    return manifest.to_json()


def _predict(
    checkpoints: Sequence[Checkpoint],
    contents: Sequence[str],
    task: ImageTask,
    recipe: Ensemble,
    world: World,
    report: Report,
) -> tuple[list[Json], tuple[int, dict[str, Predictions]], dict[str, RunningEnsemble]]:
    """The scores of every checkpoint, the best on held-out with its predictions, and the ensembles."""
    singles: list[Json] = []
    best: tuple[int, dict[str, Predictions]] = (0, {})
    ensembles: dict[str, RunningEnsemble] = {split: RunningEnsemble() for split in JUDGED}
    num_remembered = 0
    memory, fingerprint = Remembered.of("predictions", recipe), task.fingerprint()
    report(Started("predicting", len(checkpoints), "checkpoints"))
    for number, (checkpoint, content) in enumerate(zip(checkpoints, contents, strict=True)):
        if number and describe(checkpoint, recipe.model) != task.spec:
            task = open_task(checkpoint, recipe, world, splits=task.splits)
            fingerprint = task.fingerprint()
        key = memory.key_of([content], uniform([checkpoint.reference]), fingerprint)
        predictions, remembered = _predictions(checkpoint, task, memory, key)
        num_remembered += remembered
        singles.append(
            {split: scores_to_json(scores_of(p, task.metrics)) for split, p in predictions.items()}
        )
        for split in JUDGED:
            ensembles[split].add(predictions[split])
        top = singles[number]["held_out"]["top1"]["value"]
        if not best[1] or top > singles[best[0]]["held_out"]["top1"]["value"]:
            best = (number, predictions)
        report(Advanced("predicting", note=checkpoint.reference))
    report(Finished("predicting"))
    if num_remembered:
        report(Told(f"the predictions of {num_remembered} checkpoints were remembered from earlier runs"))
    if memory.failure:
        report(Told(f"predictions could not be remembered for later runs: {memory.failure}"))
    return singles, best, ensembles


def _predictions(
    checkpoint: Checkpoint, task: ImageTask, memory: Remembered, key: str
) -> tuple[dict[str, Predictions], bool]:
    """Held-out and test predictions of a checkpoint, remembered by its weights and the task; and whether they
    were."""
    examples = {"held_out": task.held_out, "test": task.test}
    known = memory.read(key)
    if known is not None:
        outputs = known[1]
        if all(split in outputs and len(outputs[split]) == len(examples[split]) for split in JUDGED):
            return {
                str(split): Predictions(outputs[split], examples[split].targets) for split in JUDGED
            }, True
    task.load(checkpoint)
    found: dict[str, Predictions] = {split: predict(task, split) for split in JUDGED}
    memory.write(key, {}, {split: each.outputs for split, each in found.items()})
    return found, False


def _table(
    best: str, metrics: JsonView, comparisons: Mapping[str, Mapping[str, Comparison]], num: int
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    labels: dict[str, str] = {
        "best_single": f"{BEST}: {best}",
        **{kind: f"ensemble of {kind}, {num} models" for kind in KINDS},
    }
    for name, label in labels.items():
        for split in JUDGED:
            top1, nll = metrics[name][split]["top1"], metrics[name][split]["nll"]
            change: tuple[Cell, ...] = ("", None)
            if name in comparisons:
                c = comparisons[name][split]
                change = (f"{c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}]", c.p_value)
            cells = (score_cell(top1), score_cell(nll), *change, top1["num_examples"])
            rows.append((label, split_label(split), *cells))
    columns = ("model", "split", "top1", "nll", "Δ top1 to best single, 95 %", "p", "n")
    return Table("ensemble", columns, tuple(rows), "± is one standard error; held-out chose the best single")


def _write(
    output: OutputDirectory, manifest: Manifest, checkpoints: Sequence[Checkpoint], contents: Sequence[str]
) -> Manifest:
    """scores.json and the manifest, which then also knows the inputs by content."""
    with output as directory:
        write_scores(directory, manifest)
        return write_findings(directory, manifest, describe_inputs(checkpoints, output.out, contents))
