"""From learned coefficients to the written soup, its scores, tables and plots.

Shape suffixes: K ingredients, B blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from soupkit.errors import DivergedError
from soupkit.events import Table
from soupkit.jsons import Json, JsonView
from soupkit.recipe.soup import MergeTwa
from soupkit.report.coefficients import heat_map, learning_curve
from soupkit.report.tables import score_rows, score_table, uniform_label
from soupkit.stages.learning.ground import keep_the_better
from soupkit.stages.learning.search import Outcome, Search
from soupkit.stages.outputs.soup import Record, write_soup
from soupkit.task.batch_norm import has_batch_norm

SHOWN = 12
"""Ingredients in the table of coefficients."""


def learned(search: Search, run: Callable[[], Outcome]) -> Outcome:
    """What a search comes to. One that leaves the ground has nothing to go on with: its journal is
    removed."""
    try:
        return run()
    except DivergedError:
        search.journal.remove()
        raise


def write_learned(search: Search, outcome: Outcome) -> Json:
    """Write the soup, score what was written, and tell; returns the manifest, on every rank."""
    manifest = search.world.in_main(lambda: _write(search, outcome))
    search.journal.remove()
    search.report(_scores_table(search, manifest))
    search.report(_coefficients_table(search, outcome.coefficients_KB))
    return manifest


def _write(search: Search, outcome: Outcome) -> Json:
    recipe, soup = search.recipe, search.soup
    with soup.by_itself() as alone:  # the others wait: nothing that follows is shared
        soup.task.model.eval()
        statistics = keep_the_better(search, outcome)
        return write_soup(
            search.ingredients,
            search.mixture(outcome.coefficients_KB),
            recipe,
            alone,
            search.report,
            command=search.command,
            record=Record(_trace(outcome), _notes(search, outcome)),
            replaced=statistics,
            measure=lambda checkpoint: soup.measure(checkpoint, test=recipe.test),
            illustrate=(lambda directory: _draw(search, outcome, directory)) if recipe.plots else None,
        )


def _trace(outcome: Outcome) -> list[Json]:
    return [
        {"run": name, "epoch": epoch, "loss": loss}
        for name, losses in outcome.losses.items()
        for epoch, loss in enumerate(losses, start=1)
    ]


def _notes(search: Search, outcome: Outcome) -> Json:
    return {
        **outcome.notes,
        **_fitted_on(search, outcome),
        "blocks": list(search.layout.labels),
        "memory": search.memory.to_json(),
        "ranks": search.world.size,
        "batch_statistics": search.batch_statistics,
        "seconds": round(time.perf_counter() - search.began, 3),
    }


def _fitted_on(search: Search, outcome: Outcome) -> Json:
    """Which examples the coefficients are owed to: uniform ones, in the place of learned ones, to the
    comparison."""
    kept = outcome.notes["against_uniform"]["kept_uniform"]
    split = search.recipe.fit if isinstance(search.recipe, MergeTwa) and not kept else "held_out"
    num = len(search.soup.task.held_out) if kept else len(search.examples)
    note = {"split": split, "num_examples": num, "data": search.soup.task.splits.description}
    return {"selected_on" if kept else "learned_on": note}


def _draw(search: Search, outcome: Outcome, directory: Path) -> None:
    names = search.ingredients.names
    title = f"{search.command}: coefficients"
    columns = search.layout.labels
    heat_map(
        directory / "coefficients.png", outcome.coefficients_KB, rows=names, columns=columns, title=title
    )
    if outcome.losses:
        learning_curve(
            directory / "learning.png",
            outcome.losses,
            scores=outcome.fold_scores,
            metric=search.recipe.metric,
            title=f"{search.command}: learning",
        )


def _scores_table(search: Search, manifest: JsonView) -> Table:
    """The uniform soup beside the learned one, on what was learned from and on what was not."""
    uniform = uniform_label(search.recipe.bn, has_batch_norm=has_batch_norm(search.soup.task.model))
    notes = manifest["notes"]
    written = f"{uniform}, written" if notes["against_uniform"]["kept_uniform"] else search.command
    rows = score_rows(uniform, notes["uniform"]), score_rows(written, manifest["metrics"], notes)
    return score_table(search.command, *rows)


def _coefficients_table(search: Search, coefficients_KB: np.ndarray) -> Table:
    means_K = coefficients_KB.mean(1)
    order: Sequence[int] = np.argsort(-np.abs(means_K), kind="stable")[:SHOWN].tolist()
    rows = tuple(
        (
            search.ingredients.names[k],
            f"{means_K[k]:.4f}",
            f"{coefficients_KB[k].min():.4f}",
            f"{coefficients_KB[k].max():.4f}",
        )
        for k in order
    )
    rest = len(means_K) - len(rows)
    caption = f"over {coefficients_KB.shape[1]} blocks" + (f"; {rest} more in soupkit.json" if rest else "")
    return Table("coefficients", ("ingredient", "mean", "least", "most"), rows, caption)
