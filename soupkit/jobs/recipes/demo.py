"""`soupkit demo`: the recipe that is shipped in the package, over one or several seeds, and its result side
by side."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from soupkit.events import Report, Table, Told, Wrote
from soupkit.jsons import Json, JsonView
from soupkit.manifest import Manifest
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.run import Demo
from soupkit.recipe.steps import parse_steps
from soupkit.report.plots import dot_plot
from soupkit.report.tables import split_label
from soupkit.stages.steps import run_steps
from soupkit.world import World, available_cores

RECIPE = "demo.yaml"
COLUMNS = ("best single", "uniform soup", "greedy soup", "ensemble of logits")
SPLITS = ("held_out", "test")
Scores = dict[str, dict[str, Json]]
"""{model: {split: {value, standard_error, num_examples}}} of top-1."""


def demo(recipe: Demo, _world: World, report: Report) -> Json:
    """Run the demo for every seed; writes table, plot and manifest beside the models. Raises what its steps
    raise."""
    seeds = list(range(recipe.seed, recipe.seed + recipe.seeds))
    outcomes = [_run_seed(recipe, seed, report) for seed in seeds]
    scores = [_scores(outcome) for outcome in outcomes]
    members = [_members(outcome) for outcome in outcomes]
    summary = scores[0] if len(seeds) == 1 else _over_seeds(scores)
    manifest = Manifest(
        command="demo",
        recipe=recipe_to_json(recipe),
        metrics={
            name: {split: {"top1": value} for split, value in splits.items()}
            for name, splits in summary.items()
        },
        notes={
            "seeds": seeds,
            "per_seed": scores,
            "picks": [outcome["greedy"]["notes"]["picks"] for outcome in outcomes],
            "members_top1_test": members,
        },
    )
    _write(recipe.out, manifest, summary, members, report)
    _tell(recipe, summary, outcomes, report)
    return manifest.to_json()


def _run_seed(recipe: Demo, seed: int, report: Report) -> Json:
    out = recipe.out if recipe.seeds == 1 else recipe.out / f"seed-{seed}"
    jobs = recipe.jobs or available_cores()
    settings = [f"out={out}", f"seed={seed}", f"num_runs={recipe.num_runs}", f"jobs={jobs}"]
    text = resources.files("soupkit.recipe").joinpath(RECIPE).read_text(encoding="utf-8")
    steps = parse_steps(text, settings, where=RECIPE).steps
    outcome: Json = run_steps(steps, _without_tables(report), force=recipe.force)["steps"]
    return outcome


def _without_tables(report: Report) -> Report:
    """The steps' own tables would bury the one that the demo is about; they are all on disk."""
    return lambda event: None if isinstance(event, Table) else report(event)


def _scores(outcome: JsonView) -> Scores:
    best = outcome["greedy"]["notes"]["picks"][0]
    uniform, greedy = (str(Path(outcome[name]["recipe"]["out"])) for name in ("uniform", "greedy"))
    metrics = {**outcome["ensemble"]["metrics"], **outcome["soups"]["metrics"]}
    sources = dict(zip(COLUMNS, (best, uniform, greedy, "ensemble of logits"), strict=True))
    return {
        name: {split: metrics[source][split]["top1"] for split in SPLITS} for name, source in sources.items()
    }


def _members(outcome: JsonView) -> list[float]:
    """Test accuracy of every model of the sweep."""
    metrics = outcome["ensemble"]["metrics"]
    return [metrics[name]["test"]["top1"]["value"] for name in metrics if name != "ensemble of logits"]


def _over_seeds(scores: Sequence[Scores]) -> Scores:
    """Mean over seeds, with the standard error of that mean."""
    summary: Scores = {}
    for name in COLUMNS:
        summary[name] = {}
        for split in SPLITS:
            values = [each[name][split]["value"] for each in scores]
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            num_examples = scores[0][name][split]["num_examples"]
            error = math.sqrt(variance / len(values))
            summary[name][split] = {"value": mean, "standard_error": error, "num_examples": num_examples}
    return summary


def _write(
    out: Path, manifest: Manifest, summary: Scores, members: Sequence[Sequence[float]], report: Report
) -> None:
    with (out / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "split", "top1", "standard_error", "num_examples"))
        for name, splits in summary.items():
            for split, score in splits.items():
                writer.writerow((name, split, *score.values()))
    rows = {
        name: {
            split_label(split): (100 * score["value"], 100 * (score["standard_error"] or 0))
            for split, score in splits.items()
        }
        for name, splits in summary.items()
    }
    faint = {COLUMNS[0]: [100 * value for values in members for value in values]}
    title = "Soups on handwritten digits (faint: each model of the sweep, test)"
    dot_plot(
        out / "scores.png", rows, title=title, xlabel="top-1 accuracy, %, ± 1 standard error", faint=faint
    )
    manifest.write(out)
    for name in ("scores.csv", "scores.png"):
        report(Wrote(out / name, (out / name).stat().st_size))


def _tell(recipe: Demo, summary: Scores, outcomes: Sequence[JsonView], report: Report) -> None:
    sizes = [len(outcome["greedy"]["notes"]["picks"]) for outcome in outcomes]
    rows = tuple(
        (name, *(_percent(splits["held_out"])), *(_percent(splits["test"])))
        for name, splits in summary.items()
    )
    held_out, test = (summary[COLUMNS[0]][split]["num_examples"] for split in SPLITS)
    columns = ("model", f"held-out % (n = {held_out})", "± s.e.", f"test % (n = {test})", "± s.e.")
    over = (
        f"mean of {recipe.seeds} seeds and its standard error"
        if recipe.seeds > 1
        else "standard error of a share (Wilson)"
    )
    caption = (
        f"top-1 accuracy; {over}; held-out chose, test only reports; greedy picked "
        f"{', '.join(map(str, sizes))} of {recipe.num_runs}; the ensemble runs {recipe.num_runs} models "
        f"per image"
    )
    report(Table("soups of fine-tuned models on handwritten digits", columns, rows, caption))
    soup = outcomes[-1]["greedy"]["recipe"]["out"]
    report(Told(f"look at {recipe.out / 'scores.png'}; next: soupkit inspect {soup}"))


def _percent(score: JsonView) -> tuple[float, float]:
    return 100 * score["value"], 100 * (score["standard_error"] or 0)
