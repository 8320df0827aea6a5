"""`merge greedy`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from soupkit.checkpoint.reference import open_references
from soupkit.events import Report, Table, Told
from soupkit.jsons import Json
from soupkit.merge.mixture import Mixture, keep_batch_norm, subset_mean
from soupkit.metrics import Direction
from soupkit.recipe.merge import MergeGreedy
from soupkit.report.tables import score_rows, score_table
from soupkit.soup.blocks import lay_out_weights
from soupkit.soup.greedy import Greedy, greedy, trace
from soupkit.soup.greedy_blocks import greedy_by_block
from soupkit.stages.alignment.merges import check_align_options, ingredients_to_merge, replaced_tensors
from soupkit.stages.inputs.seen import fitted_on
from soupkit.stages.outputs.soup import Ingredients, Record, prepare, show_plan, write_soup
from soupkit.stages.scoring.direction import decide
from soupkit.stages.scoring.judges import (
    RememberingScorer,
    open_judge,
    refuse_refresh,
    score_entry,
    write_judged,
)
from soupkit.stages.scoring.ranked import without_the_best
from soupkit.stages.scoring.scoring import SoupTask
from soupkit.world import World

ONLY_THE_BEST = (
    "only the best model stayed: no other improved it. That is usual when the checkpoints do not start from "
    "one common ancestor, when their learning rates differ widely, or when held-out data are few"
)


def merge_greedy(recipe: MergeGreedy, world: World, report: Report) -> Json:
    """Rank, add greedily, write the soup, and score what was written."""
    check_align_options(recipe)
    better = decide(recipe, report)
    ingredients = prepare(without_the_best(open_references(recipe.refs), recipe, report), recipe, report)
    refuse_refresh(recipe)
    judge = open_judge(ingredients, recipe, world, report, early_stop=recipe.early_stop)
    if recipe.dry_run:
        return show_plan(ingredients, recipe, world, report)
    ingredients, alignment = ingredients_to_merge(ingredients, recipe, world, report)
    judge = judge.of(ingredients)
    remembering = RememberingScorer(judge, recipe, world, report)
    result = _search(ingredients, remembering, recipe, better, report)
    remembering.tell(report)
    _tell(result, report)

    def write(alone: World) -> Json:
        soup = judge.soup
        single = _best_single(result, ingredients, soup if recipe.test else None)
        notes = _notes(result, ingredients, soup) | single
        replaced, repair = replaced_tensors(ingredients, result.mixture, recipe, alone, report, soup=soup)
        return write_soup(
            ingredients,
            result.mixture,
            recipe,
            alone,
            report,
            command="merge greedy",
            record=Record(trace(result, ingredients.names), {**notes, **alignment, **repair}),
            replaced=replaced,
            measure=judge.measure,
        )

    manifest = write_judged(judge, world, write)
    report(_table(manifest))
    return manifest


def _search(
    ingredients: Ingredients, score: RememberingScorer, recipe: MergeGreedy, better: Direction, report: Report
) -> Greedy:
    """Picks for the whole soup, or for every block."""
    accept, slots = recipe.accept, ingredients.plan.slots
    if recipe.blocks == "global":

        def mix(names: Sequence[str], picks: Sequence[int]) -> Mixture:
            """The mean, under --bn keep with the first pick's batch-norm statistics."""
            mixture = subset_mean(names, picks)
            return (
                keep_batch_norm(mixture, picks[0], slots)
                if recipe.bn == "keep" and len(picks) > 1
                else mixture
            )

        return greedy(ingredients.names, score, direction=better, accept=accept, mix=mix, report=report)
    layout = lay_out_weights(slots, recipe.blocks)
    places = with_statistics(layout.blocks, slots)

    def mix_blocks(coefficients_KB: np.ndarray) -> Mixture:
        return Mixture(tuple(ingredients.names), coefficients_KB, 1.0, places)

    return greedy_by_block(
        ingredients.names,
        score,
        layout.labels,
        mix=mix_blocks,
        direction=better,
        accept=accept,
        report=report,
    )


def with_statistics(blocks: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """The blocks of all tensors: batch-norm statistics and counters lie in that of the weight beside them."""
    beside = {name.rpartition(".")[0]: block for name, block in blocks.items()}
    return {name: blocks.get(name, beside.get(name.rpartition(".")[0], 0)) for name in names}


def _tell(result: Greedy, report: Report) -> None:
    if result.trials and any(trial.score.stopped for trial in result.trials):
        report(Told(f"early stop: trials evaluated {result.share_evaluated:.0%} of their examples"))
    if len(result.picks) == 1 and len(result.singles) > 1:
        report(Told(ONLY_THE_BEST))


def _notes(result: Greedy, ingredients: Ingredients, soup: SoupTask | None) -> Json:
    names = ingredients.names
    return {
        **fitted_on(soup),
        "picks": [names[k] for k in result.picks],
        "singles": {name: score_entry(single) for name, single in zip(names, result.singles, strict=True)},
        "held_out_of_soup": score_entry(result.score),
        "share_of_trial_examples_evaluated": result.share_evaluated,
    }


def _best_single(result: Greedy, ingredients: Ingredients, soup: SoupTask | None) -> Json:
    """The best single by held-out, on both splits: what the soup has to beat on test."""
    if soup is None:
        return {}
    best = result.picks[0]
    metrics = soup.measure(ingredients.checkpoints[best], test=True)
    return {"best_single": {"reference": ingredients.names[best], "metrics": metrics}}


def _table(manifest: Json) -> Table:
    """Best single beside the soup, on what selected and on what did not."""
    notes, metrics = manifest["notes"], manifest["metrics"]
    picks, singles = notes["picks"], notes["singles"]
    best, on_held_out = f"best single: {picks[0]}", singles[picks[0]]
    single = notes.get("best_single", {}).get("metrics", {}) | {
        "held_out": {on_held_out["metric"]: on_held_out}
    }
    soup = f"greedy soup of {len(picks)} of {len(manifest['inputs'])}"
    return score_table("merge greedy", score_rows(best, single, notes), score_rows(soup, metrics, notes))
