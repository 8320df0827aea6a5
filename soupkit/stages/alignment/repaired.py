"""The statistics of a soup's units, made those of its ingredients: what `repair`, --repair and barriers
share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from soupkit.align.moments import Batches
from soupkit.align.repair import Kind, Repaired, measure_endpoints
from soupkit.align.repair import repair as repair_model
from soupkit.asked import Aligns
from soupkit.checkpoint.dtypes import Array
from soupkit.events import Report, Scored, Table, Told
from soupkit.jsons import Json
from soupkit.merge.mixture import Mixture
from soupkit.stages.scoring.scoring import SoupTask, rounded, training_batches
from soupkit.task.score import Score, scores_to_json
from soupkit.task.task import Task

MOST_ROWS = 40


def repaired_mixture(
    soup: SoupTask, mixture: Mixture, recipe: Aligns, report: Report
) -> tuple[dict[str, Array], Json]:
    """`--repair`: the tensors that replace the mixture's, which is loaded; none when the held-out loss is not
    lower."""
    assert recipe.repair != "off"
    rows = mixture.used()
    if len(rows) < 2:
        report(Told("one ingredient: there is nothing to repair"))
        return {}, {}
    coefficients = mixture.matrix[rows].mean(axis=1).tolist()
    endpoints = [soup.ingredients.checkpoints[row] for row in rows]
    batches = training_batches(soup.task, recipe, num_batches=recipe.bn_batches)
    changed, notes = repaired(
        soup.task, endpoints, coefficients, kind=recipe.repair, batches=batches, force=False, report=report
    )
    return rounded(changed, soup.ingredients.plan.slots), notes


def repaired(
    task: Task,
    endpoints: Sequence[Mapping[str, Array]],
    coefficients: Sequence[float],
    *,
    kind: Kind,
    batches: Callable[[], Batches],
    force: bool,
    report: Report,
) -> tuple[dict[str, Array], Json]:
    """Repair the model that `task` holds; the tensors to write in place of its own, none unless the loss is
    lower.

    Notes: the held-out loss before and after, whether it is kept, each layer's variance ratio before and
    after.
    """
    before = _held_out_loss(task)
    measured = measure_endpoints(task, endpoints, kind=kind, batches=batches)
    result = repair_model(task, measured, coefficients, kind=kind, batches=batches)
    after = _held_out_loss(task)
    kept = force or after.value < before.value
    for name, score in (("soup", before), ("repaired", after)):
        report(Scored(name, score.metric, score.value, score.standard_error, score.num_examples, "held-out"))
    report(_ratio_table(result))
    report(Told(_verdict(before, after, kept=kept, force=force)))
    if result.without_shift:
        report(Told(f"{len(result.without_shift)} layers have no bias: their means were scaled, not shifted"))
    tensors = task.tensors()
    changed = {task.saved_name(name): name for name in result.changed} if kept else {}
    return {name: tensors[name].copy() for name in changed}, _notes(result, before, after, kept=kept)


def _held_out_loss(task: Task) -> Score:
    return task.score(task.held_out, task.criterion)


def _verdict(before: Score, after: Score, *, kept: bool, force: bool) -> str:
    change = f"held-out loss {before.value:.4f} → {after.value:.4f}"
    if kept and after.value < before.value:
        return f"repaired: {change}"
    return (
        f"repaired although {change} (--force)"
        if force
        else f"not repaired: {change}; the soup stays as it was"
    )


def _ratio_table(result: Repaired) -> Table:
    """Variance of each layer over its target's; the most changed where there are many."""
    names = [name for name in result.before if name in result.after]
    if len(names) > MOST_ROWS:
        names = sorted(names, key=lambda name: -abs(result.after[name] - result.before[name]))[:MOST_ROWS]
    rows = tuple((name, round(result.before[name], 4), round(result.after[name], 4)) for name in names)
    caption = (
        f"the {MOST_ROWS} most changed of {len(result.before)}" if len(names) < len(result.before) else ""
    )
    return Table("variance over the ingredients'", ("layer", "before", "after"), rows, caption)


def _notes(result: Repaired, before: Score, after: Score, *, kept: bool) -> Json:
    return cast(
        Json,
        {
            "kept": kept,
            "held_out_before": scores_to_json({before.metric: before}),
            "held_out_after": scores_to_json({after.metric: after}),
            "variance_ratios_before": dict(result.before),
            "variance_ratios_after": dict(result.after),
            "without_shift": list(result.without_shift),
            "skipped": dict(result.skipped),
        },
    )
